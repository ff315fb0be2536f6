// A recurrent layer of `unroll` on a CPU: whole sequences in one call, forward and backward.
//
// Why: in a compiled loop XLA packs w_hh anew at every step, runs everything element-wise on one thread, and wakes a
// second thread for each product; sequences that have ended and steps that are reset are computed and thrown away. Here
// the weights are packed once a call, and each thread takes its own rows of the batch through all time steps. Rows are
// sorted by length, so that those that have ended are left out. In a small batch threads share rows and divide units.
//
// No result depends on how many threads there are: a row's values are summed over entries of the state in one order,
// and the gradients of weights over steps and rows in one order.

#pragma once

#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "gates.h"
#include "gemm.h"
#include "phases.h"

namespace rnn_lm {

constexpr int64_t kChunk = 48;           // rows whose products and gates are computed in turns, in the first caches
constexpr int64_t kProjected = 96;       // rows of inputs that a thread multiplies by w_xh at a time
constexpr int64_t kGathered = 1 << 18;   // floats of adjoints after which their products with states are added, but
constexpr int64_t kLeastGathered = 512;  // no fewer rows of them
constexpr int64_t kLeastRows = 4;        // of a thread, before threads divide units
constexpr int64_t kLeastStep = 1 << 18;  // multiplications of a step that are worth dividing units

enum Inputs : int64_t { kVectors, kIds, kReady };  // kReady: they are x w_xh + b_h already

// What both directions are given. Arrays that are not there are null.
struct Layer {
  int64_t cell, inputs_are;
  bool reverse;
  int64_t steps, batch, n, d, gn;
  const float* x;
  const int32_t* ids;
  const float *w_xh, *b_h, *w_hh, *b_hn, *h0, *c0, *initial_h, *initial_c;
  const int32_t* given_lengths;
  const bool* resets;
  std::vector<int64_t> order;    // rows by length, longest first
  std::vector<int64_t> lengths;  // of rows

  int64_t StepAt(int64_t s) const { return reverse ? steps - 1 - s : s; }
  bool IsReset(int64_t t, int64_t row) const { return resets && resets[t * batch + row]; }
  bool IsFirst(int64_t t, int64_t row) const { return t == (reverse ? lengths[row] - 1 : 0); }

  // The state that a row's step t starts from.
  const float* Before(const float* states, const float* first, const float* initial, int64_t t, int64_t row) const {
    if (IsReset(t, row)) return initial + row * n;
    if (IsFirst(t, row)) return first + row * n;
    return states + ((reverse ? t + 1 : t - 1) * batch + row) * n;
  }

  // As JAX has it: negative ids count from the end. Others that are out of range select the nearest row, which gets no
  // gradient from them.
  int64_t IdAt(int64_t at) const { return ids[at] < 0 ? ids[at] + d : ids[at]; }
  bool IsInRange(int64_t id) const { return 0 <= id && id < d; }
  const float* RowOfWeights(int64_t at) const { return w_xh + std::clamp<int64_t>(IdAt(at), 0, d - 1) * gn; }

  void Sort() {
    lengths.assign(batch, steps);
    for (int64_t row = 0; given_lengths && row < batch; ++row)
      lengths[row] = std::clamp<int64_t>(given_lengths[row], 0, steps);
    order.resize(batch);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  }
};

// How threads divide a layer: its rows, and where these are few, units.
struct Cut {
  int64_t row_parts = 1, unit_parts = 1;

  Cut(const Layer& layer, int64_t threads) {
    if (threads < 2 || layer.steps * layer.batch * layer.n * layer.gn < kLeastCall) return;
    row_parts = std::clamp<int64_t>(layer.batch / kLeastRows, 1, threads);
    const int64_t step = DividedUp(layer.batch, row_parts) * layer.n * layer.gn;
    unit_parts = std::clamp<int64_t>(step / kLeastStep, 1, std::min(threads / row_parts, DividedUp(layer.n, kPanel)));
  }
  int64_t parts() const { return row_parts * unit_parts; }
};

// One part: some rows, and some units of them.
struct Part {
  std::vector<int64_t> rows;    // longest first
  std::vector<int64_t> active;  // how many of them step t is of
  int64_t row_part, unit_part, unit_parts;

  Part(const Layer& layer, const Cut& cut, int64_t part)
      : active(layer.steps), row_part(part % cut.row_parts), unit_part(part / cut.row_parts),
        unit_parts(cut.unit_parts) {
    // Dealt out like cards where lengths differ, so that parts are equal; else side by side in memory.
    for (int64_t i = 0; i < layer.batch; ++i) {
      const bool is_own =
          layer.given_lengths ? i % cut.row_parts == row_part : i * cut.row_parts / layer.batch == row_part;
      if (is_own) rows.push_back(layer.order[i]);
    }
    int64_t count = rows.size();
    for (int64_t t = 0; t < layer.steps; ++t) {
      while (count > 0 && layer.lengths[rows[count - 1]] <= t) --count;
      active[t] = count;
    }
  }

  // This part of n panels.
  int64_t Begin(int64_t panels) const { return panels * unit_part / unit_parts; }
  int64_t End(int64_t panels) const { return panels * (unit_part + 1) / unit_parts; }
};

struct States {
  float *hs, *cs, *saved, *h_last, *c_last;
};

class ForwardPart {
 public:
  ForwardPart(const Layer& layer, const Cut& cut, int64_t part, const Packed& w_hh, const Packed* w_xh,
              const States& out)
      : layer_(layer), part_(layer, cut, part), w_hh_(w_hh), w_xh_(w_xh), out_(out), gates_(Gates(layer.cell)),
        width_(gates_ * kPanel), rows_(part_.rows.size()), begin_(part_.Begin(w_hh.panels())),
        end_(part_.End(w_hh.panels())),
        block_(w_xh ? std::max<int64_t>(1, kProjected / std::max<int64_t>(1, rows_)) : layer.steps),
        recurrent_(MakeBuffer(kChunk * width_)), unsaved_(MakeBuffer(4 * layer.n)), none_(MakeBuffer(layer.gn)),
        projected_(MakeBuffer(w_xh ? block_ * rows_ * (end_ - begin_) * width_ : 0)), h_before_(rows_) {
    std::fill_n(none_.get(), layer.gn, 0.0f);
  }

  void Step(int64_t s) {
    if (w_xh_ && s % block_ == 0) Project(s, std::min(layer_.steps, s + block_));
    const int64_t t = layer_.StepAt(s), active = part_.active[t];
    for (int64_t i = 0; i < active; ++i) {
      h_before_[i] = layer_.Before(out_.hs, layer_.h0, layer_.initial_h, t, part_.rows[i]);
    }
    InParts(active, kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin_; panel < end_; ++panel) {
        for (int64_t gate = 0; gate < gates_; ++gate) {
          w_hh_.Multiply(h_before_.data() + begin, end - begin, panel, gate, recurrent_.get() + gate * kPanel, width_);
        }
        ForCell(layer_.cell, [&](auto cell) { ComputeGates<cell()>(t, begin, end, panel); });
      }
    });
    done_ += active;
  }

  void Finish() {
    Finish(out_.hs, layer_.h0, out_.h_last);
    if (layer_.cell == kLstm) Finish(out_.cs, layer_.c0, out_.c_last);
  }

 private:
  // The inputs' part of the steps [s0, s1).
  void Project(int64_t s0, int64_t s1) {
    x_.clear();
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = layer_.StepAt(s);
      for (int64_t i = 0; i < part_.active[t]; ++i)
        x_.push_back(layer_.x + (t * layer_.batch + part_.rows[i]) * layer_.d);
    }
    done_ = 0;
    for (int64_t panel = begin_; panel < end_; ++panel) {
      for (int64_t gate = 0; gate < gates_; ++gate) {
        w_xh_->Multiply(x_.data(), x_.size(), panel, gate, Projected(panel, 0) + gate * kPanel, width_);
      }
    }
  }
  float* Projected(int64_t panel, int64_t i) {
    return projected_.get() + ((panel - begin_) * block_ * rows_ + i) * width_;
  }

  template <int64_t kCell>
  void ComputeGates(int64_t t, int64_t begin, int64_t end, int64_t panel) {
    const int64_t n = layer_.n, unit = panel * kPanel;
    ForwardStep step{};
    step.n = n;
    step.projected_stride = w_xh_ ? kPanel : n;
    step.b_h = (layer_.b_h ? layer_.b_h : none_.get()) + unit;
    if constexpr (kCell == kGru) step.b_hn = layer_.b_hn + unit;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = part_.rows[i], at = t * layer_.batch + row;
      if (layer_.inputs_are == kVectors) step.projected = Projected(panel, done_ + i);
      if (layer_.inputs_are == kIds) step.projected = layer_.RowOfWeights(at) + unit;
      if (layer_.inputs_are == kReady) step.projected = layer_.x + at * layer_.gn + unit;
      step.recurrent = recurrent_.get() + (i - begin) * width_;
      step.h_before = h_before_[i] + unit;
      step.h = out_.hs + at * n + unit;
      step.saved = (out_.saved ? out_.saved + at * 4 * n : unsaved_.get()) + unit;
      if constexpr (kCell == kLstm) {
        step.c_before = layer_.Before(out_.cs, layer_.c0, layer_.initial_c, t, row) + unit;
        step.c = out_.cs + at * n + unit;
      }
      ForwardGates<kCell>(std::min<int64_t>(kPanel, n - unit), step);
    }
  }

  // The last states, and zeros past the ends.
  void Finish(float* states, const float* first, float* last) const {
    const int64_t unit = begin_ * kPanel, units = std::min(layer_.n, end_ * kPanel) - unit;
    for (const int64_t row : part_.rows) {
      const int64_t length = layer_.lengths[row], end = layer_.reverse ? 0 : length - 1;
      const float* from = length ? states + (end * layer_.batch + row) * layer_.n : first + row * layer_.n;
      std::copy_n(from + unit, units, last + row * layer_.n + unit);
      for (int64_t t = length; t < layer_.steps; ++t) {
        std::fill_n(states + (t * layer_.batch + row) * layer_.n + unit, units, 0.0f);
      }
    }
  }

  const Layer& layer_;
  const Part part_;
  const Packed &w_hh_, *w_xh_;
  const States& out_;
  int64_t gates_, width_, rows_, begin_, end_, block_, done_ = 0;
  Buffer recurrent_, unsaved_, none_, projected_;
  std::vector<const float*> x_, h_before_;
};

template <typename Pool>
void Forward(Pool pool, const Layer& layer, const States& out) {
  const bool project = layer.inputs_are == kVectors;
  Packed w_hh(layer.n, layer.n, Gates(layer.cell)), w_xh(project ? layer.d : 0, layer.n, Gates(layer.cell));
  const Cut cut(layer, pool.num_threads());
  const int64_t parts = cut.parts();
  std::vector<std::optional<ForwardPart>> own(parts);
  Phases phases;
  phases.push_back([&](int64_t part) {
    for (int64_t panel = part; panel < w_hh.panels(); panel += parts) {
      w_hh.Fill(layer.w_hh, /*transposed=*/false, panel);
      if (project) w_xh.Fill(layer.w_xh, /*transposed=*/false, panel);
    }
    own[part].emplace(layer, cut, part, w_hh, project ? &w_xh : nullptr, out);
  });
  const int64_t together = cut.unit_parts > 1 ? 1 : layer.steps;  // steps without a look at what other parts did
  for (int64_t s0 = 0; s0 < layer.steps; s0 += together) {
    phases.push_back([&, s0](int64_t part) {
      for (int64_t s = s0; s < s0 + together; ++s) own[part]->Step(s);
      if (s0 + together == layer.steps) own[part]->Finish();
    });
  }
  RunPhases(pool, parts, phases);
}

// What the way back is given and makes, beside the layer. d_hs and d_cs may be null, which is zeros.
struct Adjoints {
  const float *passed, *hs, *cs, *saved, *d_hs, *d_cs, *d_h_last, *d_c_last;
  float *d_x, *d_w_xh, *d_b_h, *d_w_hh, *d_b_hn, *d_h0, *d_c0, *d_initial_h, *d_initial_c;

  // Of x w_xh + b_h, and for a GRU another of h w_hh: those of one block of steps, unless they are d_x.
  float *projected, *recurrent = nullptr;
  int64_t block;

  float* OfProjected(const Layer& layer, int64_t t, int64_t row) const {
    if (layer.inputs_are == kReady) return d_x + (t * layer.batch + row) * layer.gn;
    return projected + Slot(layer, t, row) * layer.gn;
  }
  float* OfRecurrent(const Layer& layer, int64_t t, int64_t row) const {
    return recurrent ? recurrent + Slot(layer, t, row) * layer.gn : OfProjected(layer, t, row);
  }

 private:
  int64_t Slot(const Layer& layer, int64_t t, int64_t row) const { return layer.StepAt(t) % block * layer.batch + row; }
};

class BackwardPart {
 public:
  BackwardPart(const Layer& layer, const Cut& cut, int64_t part, const Packed& w_hh, const Packed* w_xh,
               const Adjoints& a)
      : layer_(layer), part_(layer, cut, part), w_hh_(w_hh), w_xh_(w_xh), a_(a), begin_(part_.Begin(w_hh.panels())),
        end_(part_.End(w_hh.panels())), stride_((end_ - begin_) * kPanel), unit_(begin_ * kPanel),
        units_(std::min(layer.n, end_ * kPanel) - unit_), none_(MakeBuffer(layer.n)),
        d_h_(MakeBuffer(part_.rows.size() * stride_)), d_x_(MakeBuffer(kProjected * kPanel)),
        adjoint_rows_(part_.rows.size()) {
    std::fill_n(none_.get(), layer.n, 0.0f);
    for (size_t i = 0; i < part_.rows.size(); ++i) {
      const int64_t at = part_.rows[i] * layer.n + unit_;
      std::copy_n(a.d_h_last + at, units_, d_h_.get() + i * stride_);
      if (layer.cell == kLstm) std::copy_n(a.d_c_last + at, units_, a.d_c0 + at);  // becomes d_c0 in its place
      if (layer.resets) std::fill_n(a.d_initial_h + at, units_, 0.0f);
      if (layer.resets && layer.cell == kLstm) std::fill_n(a.d_initial_c + at, units_, 0.0f);
    }
  }

  // The gates' adjoints at step t, of the rows [begin, end).
  void ComputeGates(int64_t t, int64_t begin, int64_t end) {
    ForCell(layer_.cell, [&](auto cell) {
      for (int64_t i = begin; i < end; ++i) ComputeGates<cell()>(t, i);
    });
  }

  // The adjoints of the states before step t: needs those of all gates.
  void Multiply(int64_t t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) adjoint_rows_[i] = a_.OfRecurrent(layer_, t, part_.rows[i]);
    for (int64_t panel = begin_; panel < end_; ++panel) {
      w_hh_.Multiply(adjoint_rows_.data() + begin, end - begin, panel, 0,
                     d_h_.get() + begin * stride_ + (panel - begin_) * kPanel, stride_, /*add=*/layer_.cell == kGru);
    }
    for (int64_t i = begin; i < end; ++i) Enter(t, i);
  }

  int64_t Active(int64_t t) const { return part_.active[t]; }

  // The adjoints of the inputs of the steps [s0, s1).
  void OfInputs(int64_t s0, int64_t s1) {
    if (!w_xh_) return;
    std::vector<const float*> adjoints;
    std::vector<float*> to;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = layer_.StepAt(s);
      for (int64_t i = 0; i < part_.active[t]; ++i) {
        adjoints.push_back(a_.OfProjected(layer_, t, part_.rows[i]));
        to.push_back(a_.d_x + (t * layer_.batch + part_.rows[i]) * layer_.d);
      }
    }
    InParts(to.size(), kProjected, [&](int64_t begin, int64_t end) {
      for (int64_t panel = part_.Begin(w_xh_->panels()); panel < part_.End(w_xh_->panels()); ++panel) {
        w_xh_->Multiply(adjoints.data() + begin, end - begin, panel, 0, d_x_.get(), kPanel);
        const int64_t width = std::min<int64_t>(kPanel, layer_.d - panel * kPanel);
        for (int64_t i = begin; i < end; ++i) {
          std::copy_n(d_x_.get() + (i - begin) * kPanel, width, to[i] + panel * kPanel);
        }
      }
    });
  }

  void Finish() {
    for (size_t i = 0; i < part_.rows.size(); ++i) {
      const int64_t row = part_.rows[i];
      std::copy_n(d_h_.get() + i * stride_, units_, a_.d_h0 + row * layer_.n + unit_);
      for (int64_t t = layer_.lengths[row]; part_.unit_part == 0 && t < layer_.steps; ++t) {
        const int64_t width = layer_.inputs_are == kReady ? layer_.gn : layer_.d;
        if (a_.d_x) std::fill_n(a_.d_x + (t * layer_.batch + row) * width, width, 0.0f);
      }
    }
  }

 private:
  template <int64_t kCell>
  void ComputeGates(int64_t t, int64_t i) {
    const int64_t n = layer_.n, row = part_.rows[i], at = t * layer_.batch + row, u = unit_;
    BackwardStep step{};
    step.n = n;
    step.d_hs = (a_.d_hs ? a_.d_hs + at * n : none_.get()) + u;
    step.d_h = d_h_.get() + i * stride_;
    step.d_projected = a_.OfProjected(layer_, t, row) + u;
    if constexpr (kCell == kLstm) {
      step.saved = a_.saved + at * 4 * n + u;
      step.c = a_.cs + at * n + u;
      step.c_before = layer_.Before(a_.cs, layer_.c0, layer_.initial_c, t, row) + u;
      step.d_cs = (a_.d_cs ? a_.d_cs + at * n : none_.get()) + u;
      step.d_c = a_.d_c0 + row * n + u;
    } else if constexpr (kCell == kGru) {
      step.saved = a_.saved + at * 4 * n + u;
      step.h_before = layer_.Before(a_.hs, layer_.h0, layer_.initial_h, t, row) + u;
      step.d_recurrent = a_.OfRecurrent(layer_, t, row) + u;
    } else {
      step.h = a_.hs + at * n + u;
    }
    BackwardGates<kCell>(units_, step);
  }

  // From the adjoint of the state that step t started from to that of the state after the step before.
  void Enter(int64_t t, int64_t i) {
    const int64_t row = part_.rows[i], at = row * layer_.n + unit_;
    const auto enter = [&](float* d_state, float* d_initial) {
      if (layer_.IsReset(t, row)) {
        for (int64_t j = 0; j < units_; ++j) d_initial[at + j] += d_state[j];
        std::fill_n(d_state, units_, 0.0f);
      } else if (a_.passed && a_.passed[t] != 1.0f) {
        for (int64_t j = 0; j < units_; ++j) d_state[j] *= a_.passed[t];
      }
    };
    enter(d_h_.get() + i * stride_, a_.d_initial_h);
    if (layer_.cell == kLstm) enter(a_.d_c0 + at, a_.d_initial_c);
  }

  const Layer& layer_;
  const Part part_;
  const Packed &w_hh_, *w_xh_;
  const Adjoints& a_;
  int64_t begin_, end_, stride_, unit_, units_;
  Buffer none_, d_h_, d_x_;
  std::vector<const float*> adjoint_rows_;
};

// The gradients of weights, one part of them: some of their columns, and where these are few, some of their rows. Time
// steps and rows of the batch are summed in one order, some of them at a time while their adjoints are in the cache.
class WeightGradients {
 public:
  WeightGradients(const Layer& layer, const Adjoints& a, int64_t part, int64_t parts)
      : layer_(layer), a_(a), shares_(layer, part, parts), of_states_(layer.n, layer.gn, shares_),
        of_inputs_(layer.inputs_are == kVectors ? layer.d : 0, layer.gn, shares_), rows_(kDepth),
        d_(MakeBuffer(kDepth * kPanel)) {
    for (int64_t id = 0; shares_.is_first && layer.inputs_are == kIds && id < layer.d; ++id) {
      std::fill_n(a.d_w_xh + id * layer.gn + shares_.Column(), shares_.Columns(), 0.0f);
    }
  }

  // The steps [s0, s1), from the last to the first.
  void Add(int64_t s0, int64_t s1) {
    if (shares_.begin == shares_.end) return;
    for (int64_t s = s1 - 1; s >= s0; --s) {
      const int64_t t = layer_.StepAt(s);
      for (const int64_t row : layer_.order) {
        if (layer_.lengths[row] <= t) break;
        const int64_t at = t * layer_.batch + row;
        rows_[count_++] = {layer_.Before(a_.hs, layer_.h0, layer_.initial_h, t, row),
                           layer_.x ? layer_.x + at * layer_.d : nullptr, a_.OfRecurrent(layer_, t, row),
                           a_.OfProjected(layer_, t, row), layer_.inputs_are == kIds ? layer_.IdAt(at) : -1};
        if (count_ == kDepth) AddRows();
      }
    }
    AddRows();
  }

  void Write() const {
    of_states_.Write(a_.d_w_hh);
    if (layer_.inputs_are == kVectors) of_inputs_.Write(a_.d_w_xh);
    for (int64_t j = shares_.Column(); shares_.is_first && j < shares_.Column() + shares_.Columns(); ++j) {
      if (a_.d_b_h) a_.d_b_h[j] = of_inputs_.column_sums[j - shares_.Column()];
      if (a_.d_b_hn && j >= 2 * layer_.n) a_.d_b_hn[j - 2 * layer_.n] = of_states_.column_sums[j - shares_.Column()];
    }
  }

 private:
  struct Shares {
    int64_t gn, begin, end;  // panels [begin, end) of columns
    int64_t row_part, row_parts;
    bool is_first;  // of those with the same columns

    Shares(const Layer& layer, int64_t part, int64_t parts) : gn(layer.gn) {
      const int64_t panels = DividedUp(gn, kPanel), column_parts = std::min(parts, panels), i = part % column_parts;
      row_part = part / column_parts, row_parts = parts / column_parts, is_first = row_part == 0;
      begin = panels * i / column_parts, end = row_part < row_parts ? panels * (i + 1) / column_parts : begin;
    }
    int64_t Column() const { return begin * kPanel; }
    int64_t Columns() const { return std::min(gn, end * kPanel) - std::min(gn, Column()); }
    int64_t Row(int64_t k, int64_t next) const { return k * std::min(row_part + next, row_parts) / row_parts; }
  };

  // aᵀ d and the sums of d.
  struct Sums {
    int64_t begin, k, columns;
    const Shares& shares;
    Transposed a;
    Buffer products, column_sums;

    Sums(int64_t all, int64_t columns, const Shares& shares)
        : begin(shares.Row(all, 0)), k(shares.Row(all, 1) - begin), columns(columns), shares(shares),
          a(begin, begin + k), products(MakeBuffer((shares.end - shares.begin) * k * kPanel)),
          column_sums(MakeBuffer((shares.end - shares.begin) * kPanel)) {
      std::fill_n(products.get(), (shares.end - shares.begin) * k * kPanel, 0.0f);
      std::fill_n(column_sums.get(), (shares.end - shares.begin) * kPanel, 0.0f);
    }

    void Add(const float* d, int64_t panel) {
      if (k > 0) a.AddProduct(d, products.get() + (panel - shares.begin) * k * kPanel);
    }

    void AddColumns(const float* d, int64_t rows, int64_t panel) {
      float* to = column_sums.get() + (panel - shares.begin) * kPanel;
      Vec sums[2] = {Load(to), Load(to + kLanes)};
      for (int64_t r = 0; r < rows; ++r) {
        sums[0] += Load(d + r * kPanel);
        sums[1] += Load(d + r * kPanel + kLanes);
      }
      Store(to, sums[0]);
      Store(to + kLanes, sums[1]);
    }

    void Write(float* out) const {
      for (int64_t panel = shares.begin; panel < shares.end; ++panel) {
        const int64_t width = std::min<int64_t>(kPanel, columns - panel * kPanel);
        const float* from = products.get() + (panel - shares.begin) * k * kPanel;
        for (int64_t i = 0; i < k; ++i)
          std::copy_n(from + i * kPanel, width, out + (begin + i) * columns + panel * kPanel);
      }
    }
  };

  struct Row {
    const float *state, *x, *recurrent, *projected;
    int64_t id;
  };

  void AddRows() {
    of_states_.a.Fill(count_, [&](int64_t r) { return rows_[r].state; });
    if (of_inputs_.k > 0) of_inputs_.a.Fill(count_, [&](int64_t r) { return rows_[r].x; });
    for (int64_t panel = shares_.begin; panel < shares_.end; ++panel) {
      CopyPanel(panel, [&](int64_t r) { return rows_[r].recurrent; });
      of_states_.Add(d_.get(), panel);
      if (a_.recurrent) {  // else the adjoints of both products are the same
        if (shares_.is_first) of_states_.AddColumns(d_.get(), count_, panel);
        CopyPanel(panel, [&](int64_t r) { return rows_[r].projected; });
      }
      of_inputs_.Add(d_.get(), panel);
      if (shares_.is_first) of_inputs_.AddColumns(d_.get(), count_, panel);
      if (layer_.inputs_are == kIds && shares_.is_first) AddToRowsOfWeights(panel);
    }
    count_ = 0;
  }

  template <typename RowOf>
  void CopyPanel(int64_t panel, RowOf row_of) {
    const int64_t width = std::min<int64_t>(kPanel, layer_.gn - panel * kPanel);
    for (int64_t r = 0; r < count_; ++r) {
      const float* from = row_of(r) + panel * kPanel;
      float* to = d_.get() + r * kPanel;
      if (width == kPanel) {
        Store(to, Load(from));
        Store(to + kLanes, Load(from + kLanes));
      } else {
        std::fill_n(std::copy_n(from, width, to), kPanel - width, 0.0f);
      }
    }
  }

  void AddToRowsOfWeights(int64_t panel) {
    const int64_t width = std::min<int64_t>(kPanel, layer_.gn - panel * kPanel);
    for (int64_t r = 0; r < count_; ++r) {
      if (!layer_.IsInRange(rows_[r].id)) continue;
      float* to = a_.d_w_xh + rows_[r].id * layer_.gn + panel * kPanel;
      const float* from = d_.get() + r * kPanel;
      Lanes(width, [&](int64_t j, auto load, auto store) { store(to + j, load(to + j) + Load(from + j)); });
    }
  }

  const Layer& layer_;
  const Adjoints& a_;
  const Shares shares_;
  Sums of_states_, of_inputs_;
  std::vector<Row> rows_;
  int64_t count_ = 0;
  Buffer d_;
};

template <typename Pool>
void Backward(Pool pool, const Layer& layer, Adjoints& a) {
  const bool project = layer.inputs_are == kVectors && a.d_x;
  a.block = std::min(layer.steps,
                     DividedUp(std::max(kLeastGathered, kGathered / layer.gn), std::max<int64_t>(1, layer.batch)));
  const int64_t floats = a.block * layer.batch * layer.gn;
  const Buffer projected = MakeBuffer(layer.inputs_are == kReady ? 0 : floats);
  const Buffer recurrent = MakeBuffer(layer.cell == kGru ? floats : 0);
  a.projected = projected.get();
  if (layer.cell == kGru) a.recurrent = recurrent.get();
  Packed w_hh(layer.gn, layer.n, 1), w_xh(project ? layer.gn : 0, layer.d, 1);
  const Cut cut(layer, pool.num_threads());
  const int64_t parts = cut.parts();
  std::vector<std::optional<BackwardPart>> own(parts);
  std::vector<std::optional<WeightGradients>> weights(parts);
  Phases phases;
  phases.push_back([&](int64_t part) {
    for (int64_t panel = part; panel < w_hh.panels(); panel += parts) w_hh.Fill(layer.w_hh, true, panel);
    for (int64_t panel = part; project && panel < w_xh.panels(); panel += parts) w_xh.Fill(layer.w_xh, true, panel);
    own[part].emplace(layer, cut, part, w_hh, project ? &w_xh : nullptr, a);
    weights[part].emplace(layer, a, part, parts);
  });
  for (int64_t s0 = (layer.steps - 1) / a.block * a.block; s0 >= 0; s0 -= a.block) {
    const int64_t s1 = std::min(layer.steps, s0 + a.block);
    if (cut.unit_parts == 1) {
      phases.push_back([&, s0, s1](int64_t part) {
        for (int64_t s = s1 - 1; s >= s0; --s) {
          const int64_t t = layer.StepAt(s);
          InParts(own[part]->Active(t), kChunk, [&](int64_t begin, int64_t end) {
            own[part]->ComputeGates(t, begin, end);
            own[part]->Multiply(t, begin, end);
          });
        }
      });
    }
    for (int64_t s = s1 - 1; cut.unit_parts > 1 && s >= s0; --s) {
      const int64_t t = layer.StepAt(s);
      phases.push_back([&, t](int64_t part) { own[part]->ComputeGates(t, 0, own[part]->Active(t)); });
      phases.push_back([&, t](int64_t part) { own[part]->Multiply(t, 0, own[part]->Active(t)); });
    }
    phases.push_back([&, s0, s1](int64_t part) {
      own[part]->OfInputs(s0, s1);
      weights[part]->Add(s0, s1);
      if (s0 == 0) {
        own[part]->Finish();
        weights[part]->Write();
      }
    });
  }
  RunPhases(pool, parts, phases);
}

}  // namespace rnn_lm
