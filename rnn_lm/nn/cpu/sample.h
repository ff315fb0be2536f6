// Text from a recurrent language model on a CPU: all steps of all layers, the output layer and the draws in one call.
//
// Why: a compiled loop reads unpacked weights at every step, in products that are too small for it, and sorts, adds up
// and compares whole vocabularies with an operation each. Here the weights are packed once a call, and each thread
// takes its own texts through all steps. Where texts are few and weights large, threads share texts and divide units.
//
// No result depends on how many threads or other texts there are: all sums have one order. Tokens are those of JAX's
// scan unless a number is at the edge of a token's share to rounding.

#pragma once

#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "gates.h"
#include "gemm.h"
#include "phases.h"

namespace rnn_lm {

constexpr int64_t kTextsAtOnce = 48;        // whose products and gates are computed in turns, in the first caches
constexpr int64_t kTextsOfThread = 4;       // at least, before threads divide units
constexpr int64_t kStepOfThread = 1 << 15;  // multiplications at least, of a thread that has only some units

// Arrays that are not there are null.
struct SampledLayer {
  int64_t d, n;
  const float *w_xh, *b_h, *w_hh, *b_hn, *h0, *c0;  // [D, G·H], [G·H], [H, G·H], [H], [B, H]
  float *h, *c;                                     // [B, H], the last state
};

// What a call is given, and makes.
struct Sampling {
  int64_t cell, steps, batch, v, top_k;  // top_k 0: all
  const float* settings;                 // temperature, 0: the likeliest; top_p, 1: all
  std::vector<SampledLayer> layers;      // from the bottom to the top
  const float* embedding;                // [V, D]; null where tokens select rows of the first w_xh
  bool tied;                             // w_hq is [V, H] in place of [H, V]
  const float *w_hq, *b_q, *first;       // b_q [V]; the logits [B, V] of the first draw
  const float* uniform;                  // [steps, B], from 0 to 1
  int32_t* tokens;                       // [steps, B]
  float* logits;                         // [B, V] of the draw after the last

  int64_t gates() const { return Gates(cell); }
  bool HasVectors(int64_t layer) const { return layer > 0 || embedding; }

  // Multiplications of a step of one text.
  int64_t Products() const {
    int64_t products = layers.back().n * v;
    for (size_t l = 0; l < layers.size(); ++l) {
      products += ((HasVectors(l) ? layers[l].d : 0) + layers[l].n) * gates() * layers[l].n;
    }
    return products;
  }
};

// How threads divide the work: by texts, and where these are few, by units.
struct SamplingCut {
  int64_t text_parts = 1, unit_parts = 1;

  SamplingCut(const Sampling& s, int64_t threads) {
    const int64_t step = s.batch * s.Products(), panels = DividedUp(s.layers.back().n, kPanel);
    if (threads < 2 || s.steps * step < kLeastCall) return;
    text_parts = std::clamp<int64_t>(s.batch / kTextsOfThread, 1, threads);
    unit_parts = std::clamp<int64_t>(step / text_parts / kStepOfThread, 1, std::min(threads / text_parts, panels));
  }
  int64_t parts() const { return text_parts * unit_parts; }
};

// The next token by its logits.
class Draw {
 public:
  explicit Draw(const Sampling& s)
      : s_(s), padded_(DividedUp(s.v, kLanes) * kLanes), x_(MakeBuffer(padded_)), weights_(MakeBuffer(padded_)),
        temperature_(s.settings[0]), top_p_(s.settings[1]), ids_(s.top_k > 0 || top_p_ < 1 ? s.v : 0) {}

  // Token 0 is `<unk>`, which is drawn only where no other token has a probability: logits are not finite.
  int32_t operator()(const float* logits, float u) {
    std::fill(std::copy_n(logits, s_.v, x_.get()), x_.get() + padded_, -INFINITY);
    x_[0] = -INFINITY;
    return temperature_ > 0 ? AtQuantile(u) : Likeliest();
  }

 private:
  int64_t Likeliest() const {
    int64_t best = 0;
    for (int64_t j = 0; j < s_.v; ++j) {
      if (std::isnan(x_[j])) return 0;
      if (x_[j] > x_[best]) best = j;
    }
    return best;
  }

  // The first token whose cumulative share exceeds u.
  int64_t AtQuantile(float u) {
    Weigh();
    double total = Total(), sum = 0;
    if (std::isnan(total)) return 0;
    if (!ids_.empty()) {
      KeepLikeliest(total);
      total = Total();
    }
    for (int64_t j = 0; j < s_.v; ++j) {
      sum += weights_[j];
      if (weights_[j] > 0 && sum > u * total) return j;
    }
    return 0;
  }

  void Weigh() {
    Vec highest = Vec{} - INFINITY;
    for (int64_t j = 0; j < padded_; j += kLanes) {
      const Vec x = Load(&x_[j]);
      highest = x > highest ? x : highest;
    }
    const float most = Reduced(highest, [](auto a, auto b) { return a > b ? a : b; });
    for (int64_t j = 0; j < padded_; j += kLanes) {
      const Vec x = (Load(&x_[j]) - most) / temperature_;  // no temperature can overflow then
      Store(&x_[j], x);
      Store(&weights_[j], Exp(x));
    }
  }

  // In double precision: a vocabulary has many terms.
  double Total() const { return std::accumulate(weights_.get(), weights_.get() + s_.v, 0.0); }

  // Sets weights to 0 outside the top_k likeliest tokens and outside the nucleus of probability top_p. Tokens leave a
  // heap one by one, so what costs is how many are kept.
  void KeepLikeliest(double total) {
    const auto is_less = [this](int32_t i, int32_t j) { return x_[i] < x_[j] || (x_[i] == x_[j] && i > j); };
    std::iota(ids_.begin(), ids_.end(), 0);
    std::make_heap(ids_.begin(), ids_.end(), is_less);
    const int64_t most = s_.top_k > 0 ? std::min(s_.top_k, s_.v) : s_.v;
    auto end = ids_.end();
    double before = 0;
    for (int64_t kept = 0; kept < most && (kept == 0 || top_p_ >= 1 || before < top_p_ * total); ++kept) {
      std::pop_heap(ids_.begin(), end--, is_less);
      before += weights_[*end];
    }
    std::for_each(ids_.begin(), end, [this](int32_t id) { weights_[id] = 0; });
  }

  const Sampling& s_;
  int64_t padded_;
  Buffer x_, weights_;  // logits, less the largest and by the temperature; their exponentials
  float temperature_, top_p_;
  std::vector<int32_t> ids_;
};

// What the parts of a call share: weights, states and logits.
struct SamplingState {
  struct OfLayer {
    OfLayer(const Sampling& s, int64_t l)
        : w_hh(s.layers[l].n, s.layers[l].n, s.gates()),
          w_xh(s.HasVectors(l) ? s.layers[l].d : 0, s.layers[l].n, s.gates()),
          h{MakeBuffer(s.batch * s.layers[l].n), MakeBuffer(s.batch * s.layers[l].n)} {}

    Packed w_hh, w_xh;
    Buffer h[2];  // before even steps, and before odd ones
  };

  explicit SamplingState(const Sampling& s)
      : w_hq(s.layers.back().n, s.v, 1), ld(DividedUp(s.v, kLanes) * kLanes), logits(MakeBuffer(s.batch * ld)),
        b_q(MakeBuffer(ld)) {
    for (size_t l = 0; l < s.layers.size(); ++l) {
      const int64_t states = s.batch * s.layers[l].n;
      layers.emplace_back(s, l);
      std::copy_n(s.layers[l].h0, states, layers[l].h[0].get());
      if (s.cell == kLstm) std::copy_n(s.layers[l].c0, states, s.layers[l].c);
    }
    for (int64_t text = 0; text < s.batch; ++text) std::copy_n(s.first + text * s.v, s.v, logits.get() + text * ld);
    std::fill(std::copy_n(s.b_q, s.v, b_q.get()), b_q.get() + ld, 0.0f);
  }

  void Pack(const Sampling& s, int64_t part, int64_t parts) {
    for (size_t l = 0; l < layers.size(); ++l) {
      for (int64_t panel = part; panel < layers[l].w_hh.panels(); panel += parts) {
        layers[l].w_hh.Fill(s.layers[l].w_hh, /*transposed=*/false, panel);
        if (s.HasVectors(l)) layers[l].w_xh.Fill(s.layers[l].w_xh, /*transposed=*/false, panel);
      }
    }
    for (int64_t panel = part; panel < w_hq.panels(); panel += parts) w_hq.Fill(s.w_hq, s.tied, panel);
  }

  void Finish(const Sampling& s) const {
    for (size_t l = 0; l < layers.size(); ++l) {
      std::copy_n(layers[l].h[s.steps % 2].get(), s.batch * s.layers[l].n, s.layers[l].h);
    }
    for (int64_t text = 0; text < s.batch; ++text) std::copy_n(logits.get() + text * ld, s.v, s.logits + text * s.v);
  }

  std::vector<OfLayer> layers;
  Packed w_hq;
  int64_t ld;
  Buffer logits, b_q;  // rows of whole vectors
};

// One part: some texts, and some units and columns of the output layer.
class SamplingPart {
 public:
  SamplingPart(const Sampling& s, SamplingState& state, const SamplingCut& cut, int64_t part)
      : s_(s), state_(state), first_(s.batch * (part % cut.text_parts) / cut.text_parts),
        texts_(s.batch * (part % cut.text_parts + 1) / cut.text_parts - first_), unit_part_(part / cut.text_parts),
        unit_parts_(cut.unit_parts), width_(s.gates() * kPanel), draw_(s), tokens_(texts_),
        recurrent_(MakeBuffer(kTextsAtOnce * width_)), projected_(MakeBuffer(kTextsAtOnce * width_)) {
    int64_t most = 0;
    for (const SampledLayer& layer : s.layers) most = std::max(most, layer.n);
    unsaved_ = MakeBuffer(4 * most);
  }

  // One of the stages of step t: the layers, and then the output layer.
  void Run(int64_t t, int64_t stage) {
    if (stage == 0) DrawTokens(t);
    stage < int64_t(s_.layers.size()) ? ComputeLayer(t, stage) : ComputeLogits(t);
  }

 private:
  // Parts that share texts draw the same.
  void DrawTokens(int64_t t) {
    for (int64_t i = 0; i < texts_; ++i) {
      const int64_t text = first_ + i;
      tokens_[i] = draw_(state_.logits.get() + text * state_.ld, s_.uniform[t * s_.batch + text]);
      if (unit_part_ == 0) s_.tokens[t * s_.batch + text] = tokens_[i];
    }
  }

  void ComputeLayer(int64_t t, int64_t l) {
    const SampledLayer& layer = s_.layers[l];
    const SamplingState::OfLayer& own = state_.layers[l];
    InParts(texts_, kTextsAtOnce, [&](int64_t begin, int64_t end) {
      const float *h_before[kTextsAtOnce], *x[kTextsAtOnce];
      for (int64_t i = begin; i < end; ++i) {
        h_before[i - begin] = own.h[t % 2].get() + (first_ + i) * layer.n;
        if (l > 0) x[i - begin] = state_.layers[l - 1].h[(t + 1) % 2].get() + (first_ + i) * layer.d;
        if (l == 0 && s_.embedding) x[i - begin] = s_.embedding + tokens_[i] * layer.d;
      }
      InOwnPanels(own.w_hh, t, [&](int64_t panel) {
        for (int64_t gate = 0; gate < s_.gates(); ++gate) {
          const int64_t at = gate * kPanel;
          own.w_hh.Multiply(h_before, end - begin, panel, gate, recurrent_.get() + at, width_);
          if (s_.HasVectors(l)) own.w_xh.Multiply(x, end - begin, panel, gate, projected_.get() + at, width_);
        }
        ForCell(s_.cell, [&](auto cell) { ComputeGates<cell()>(t, l, panel * kPanel, begin, end); });
      });
    });
  }

  template <int64_t kCell>
  void ComputeGates(int64_t t, int64_t l, int64_t unit, int64_t begin, int64_t end) {
    const SampledLayer& layer = s_.layers[l];
    ForwardStep step{};
    step.n = layer.n;
    step.projected_stride = s_.HasVectors(l) ? kPanel : layer.n;
    step.b_h = layer.b_h + unit;
    step.saved = unsaved_.get();
    if constexpr (kCell == kGru) step.b_hn = layer.b_hn + unit;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = (first_ + i) * layer.n + unit;
      step.projected = s_.HasVectors(l) ? projected_.get() + (i - begin) * width_
                                        : layer.w_xh + tokens_[i] * s_.gates() * layer.n + unit;
      step.recurrent = recurrent_.get() + (i - begin) * width_;
      step.h_before = state_.layers[l].h[t % 2].get() + at;
      step.h = state_.layers[l].h[(t + 1) % 2].get() + at;
      if constexpr (kCell == kLstm) step.c_before = step.c = layer.c + at;
      ForwardGates<kCell>(std::min<int64_t>(kPanel, layer.n - unit), step);
    }
  }

  void ComputeLogits(int64_t t) {
    const int64_t n = s_.layers.back().n;
    const float* h = state_.layers.back().h[(t + 1) % 2].get() + first_ * n;
    InParts(texts_, kTextsAtOnce, [&](int64_t begin, int64_t end) {
      const float* rows[kTextsAtOnce];
      for (int64_t i = begin; i < end; ++i) rows[i - begin] = h + i * n;
      InOwnPanels(state_.w_hq, t, [&](int64_t panel) {
        const int64_t column = panel * kPanel;
        float* to = state_.logits.get() + (first_ + begin) * state_.ld + column;
        for (int64_t i = 0; i < end - begin; ++i) {
          std::copy_n(state_.b_q.get() + column, state_.w_hq.Vectors(panel) * kLanes, to + i * state_.ld);
        }
        state_.w_hq.Multiply(rows, end - begin, panel, 0, to, state_.ld, /*add=*/true);
      });
    });
  }

  // Odd steps go from the last panel to the first: what the step before read last is still in the cache.
  template <typename F>
  void InOwnPanels(const Packed& weights, int64_t t, F f) const {
    const int64_t panels = weights.panels();
    const int64_t begin = panels * unit_part_ / unit_parts_, end = panels * (unit_part_ + 1) / unit_parts_;
    for (int64_t i = begin; i < end; ++i) f(t % 2 ? begin + end - 1 - i : i);
  }

  const Sampling& s_;
  SamplingState& state_;
  int64_t first_, texts_, unit_part_, unit_parts_, width_;
  Draw draw_;
  std::vector<int32_t> tokens_;
  Buffer recurrent_, projected_, unsaved_;
};

template <typename Pool>
void Sample(Pool pool, const Sampling& s) {
  SamplingState state(s);
  const SamplingCut cut(s, pool.num_threads());
  const int64_t parts = cut.parts(), stages = s.layers.size() + 1, count = s.steps * stages;
  const int64_t together = cut.unit_parts > 1 ? 1 : count;  // stages without a look at what other parts did
  std::vector<std::optional<SamplingPart>> own(parts);
  Phases phases;
  phases.push_back([&](int64_t part) {
    state.Pack(s, part, parts);
    own[part].emplace(s, state, cut, part);
  });
  for (int64_t i = 0; i < count; i += together) {
    phases.push_back([&, i](int64_t part) {
      for (int64_t j = i; j < i + together; ++j) own[part]->Run(j / stages, j % stages);
    });
  }
  RunPhases(pool, parts, phases);
  state.Finish(s);
}

}  // namespace rnn_lm
