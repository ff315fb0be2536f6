// Random recurrent and output layers and texts through the kernels, cut for 1, 2, 5 and 64 threads: the same bits, and
// nothing that is not a number. Arrays are as large as they have to be and no larger, and what must not be looked at is
// NaN or an absurd number.

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "layer.h"
#include "output.h"
#include "sample.h"

using namespace rnn_lm;

class Threads {
 public:
  explicit Threads(int64_t count) {
    for (int64_t i = 1; i < count; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    came_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    came_.notify_one();
  }

 private:
  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      came_.wait(lock, [this] { return over_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<std::function<void()>> tasks_;
  bool over_ = false;
  std::vector<std::thread> threads_;
};

struct Pool {  // as XLA's
  Threads* threads;
  int64_t count;
  int64_t num_threads() const { return count; }
  template <typename F>
  void Schedule(F f) {
    threads->Schedule(f);
  }
};

using Floats = std::vector<float>;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Arrays for results: not numbers before they are set.
class Results {
 public:
  float* Make(int64_t count) {
    made_.emplace_back(count, kNaN);
    return made_.back().empty() ? nullptr : made_.back().data();
  }
  Floats Joined() const {
    Floats joined;
    for (const Floats& one : made_) joined.insert(joined.end(), one.begin(), one.end());
    return joined;
  }

 private:
  std::deque<Floats> made_;
};

struct Case {
  Layer layer{};
  std::vector<int32_t> ids, lengths;
  std::vector<char> resets;
  bool asked;  // whether the adjoints of the inputs are asked for
  Floats x, w_xh, b_h, w_hh, b_hn, h0, c0, initial_h, initial_c, passed, d_hs, d_cs, d_h_last, d_c_last;

  explicit Case(int seed) {
    std::mt19937 random(seed);
    const auto pick = [&](std::initializer_list<int64_t> of) { return of.begin()[random() % of.size()]; };
    const auto drawn = [&](int64_t count, bool needed = true) {
      Floats made(needed ? count : 0);
      for (float& f : made) f = std::uniform_real_distribution<float>(-0.5f, 0.5f)(random);
      return made;
    };
    Layer& l = layer;
    const bool few = seed % 8 == 0;  // rows, so that units are divided
    l.cell = pick({kTanh, kRelu, kIdentity, kGru, kLstm});
    l.inputs_are = pick({kVectors, kVectors, kIds, kReady});
    l.reverse = random() % 2, asked = random() % 3;
    l.steps = pick({2, 3, 7, 12}), l.batch = few ? pick({1, 3, 5}) : pick({0, 1, 3, 8, 13, 50, 100});
    l.n = few ? pick({260, 400}) : pick({1, 5, 8, 16, 23, 33, 70}), l.d = pick({1, 4, 17, 40});
    l.gn = Gates(l.cell) * l.n;
    const bool ready = l.inputs_are == kReady, lstm = l.cell == kLstm, gru = l.cell == kGru;
    const bool with_lengths = random() % 2, with_resets = random() % 2;
    const int64_t states = l.batch * l.n;
    if (ready) l.d = 0;
    x = drawn(l.steps * l.batch * (ready ? l.gn : l.d), l.inputs_are != kIds);
    w_xh = drawn(l.d * l.gn), b_h = drawn(l.gn, !ready), w_hh = drawn(l.n * l.gn), b_hn = drawn(l.n, gru);
    h0 = drawn(states), c0 = drawn(states, lstm);
    initial_h = drawn(states, with_resets), initial_c = drawn(states, with_resets && lstm);
    passed = drawn(l.steps, random() % 2), d_hs = drawn(l.steps * states, random() % 2);
    d_cs = drawn(l.steps * states, lstm && random() % 2), d_h_last = drawn(states), d_c_last = drawn(states, lstm);
    for (int64_t i = 0; l.inputs_are == kIds && i < l.steps * l.batch; ++i)
      ids.push_back(int32_t(random() % (3 * l.d)) - l.d);
    for (int64_t row = 0; with_lengths && row < l.batch; ++row) {
      lengths.push_back(random() % (l.steps + 1));
      for (int64_t t = lengths.back(); t < l.steps; ++t) {
        const int64_t at = t * l.batch + row;
        if (!ids.empty()) ids[at] = 1 << 30;
        if (!x.empty()) std::fill_n(&x[at * (ready ? l.gn : l.d)], ready ? l.gn : l.d, kNaN);
        if (!d_hs.empty()) std::fill_n(&d_hs[at * l.n], l.n, kNaN);
        if (!d_cs.empty()) std::fill_n(&d_cs[at * l.n], l.n, kNaN);
      }
    }
    for (int64_t i = 0; with_resets && i < l.steps * l.batch; ++i) resets.push_back(random() % 5 == 0);
    const auto data = [](const auto& of) { return of.empty() ? nullptr : of.data(); };
    l.x = data(x), l.ids = data(ids), l.w_xh = data(w_xh), l.b_h = data(b_h), l.w_hh = data(w_hh), l.b_hn = data(b_hn);
    l.h0 = data(h0), l.c0 = data(c0), l.initial_h = data(initial_h), l.initial_c = data(initial_c);
    l.given_lengths = data(lengths), l.resets = reinterpret_cast<const bool*>(data(resets));
    l.Sort();
  }

  std::string Words() const {
    const Layer& l = layer;
    return "cell " + std::to_string(l.cell) + ", inputs " + std::to_string(l.inputs_are) +
           (l.reverse ? ", reverse" : "") + ", T " + std::to_string(l.steps) + ", B " + std::to_string(l.batch) +
           ", D " + std::to_string(l.d) + ", H " + std::to_string(l.n) + (l.given_lengths ? ", lengths" : "") +
           (l.resets ? ", resets" : "") + (passed.empty() ? "" : ", truncation") + "\n";
  }

  // All results, one after the other.
  Floats Run(Pool pool) const {
    const Layer& l = layer;
    const bool ready = l.inputs_are == kReady, lstm = l.cell == kLstm, gru = l.cell == kGru;
    const int64_t states = l.batch * l.n, all = l.steps * states;
    Results results;
    const auto make = [&](int64_t count, bool needed = true) { return results.Make(needed ? count : 0); };
    const auto data = [](const Floats& of) { return of.empty() ? nullptr : of.data(); };
    Floats saved(all * 4, kNaN);
    States out{};
    out.hs = make(all), out.cs = make(all, lstm), out.saved = Saved(l.cell) ? saved.data() : nullptr;
    out.h_last = make(states), out.c_last = make(states, lstm);
    Forward(pool, l, out);
    States alone{};  // values only
    alone.hs = make(all), alone.cs = make(all, lstm), alone.h_last = make(states), alone.c_last = make(states, lstm);
    Forward(pool, l, alone);
    Adjoints a{};
    a.passed = data(passed), a.hs = out.hs, a.cs = out.cs, a.saved = out.saved, a.d_hs = data(d_hs),
    a.d_cs = data(d_cs);
    a.d_h_last = data(d_h_last), a.d_c_last = data(d_c_last);
    a.d_x = make(l.steps * l.batch * (ready ? l.gn : l.d), ready || (asked && l.inputs_are == kVectors));
    a.d_w_xh = make(l.d * l.gn), a.d_b_h = make(l.gn, !ready), a.d_w_hh = make(l.n * l.gn), a.d_b_hn = make(l.n, gru);
    a.d_h0 = make(states), a.d_c0 = make(states, lstm);
    a.d_initial_h = make(states, l.resets), a.d_initial_c = make(states, l.resets && lstm);
    Backward(pool, l, a);
    return results.Joined();
  }
};

struct OutputCase {
  Output output{};
  unsigned asked;  // a bit for each gradient
  std::vector<int32_t> labels;
  Floats h, w, b, weights;

  explicit OutputCase(int seed) {
    std::mt19937 random(seed);
    const auto pick = [&](std::initializer_list<int64_t> of) { return of.begin()[random() % of.size()]; };
    const auto drawn = [&](int64_t count) {
      Floats made(count);
      for (float& f : made) f = std::uniform_real_distribution<float>(-2.0f, 2.0f)(random);
      return made;
    };
    Output& o = output;
    o.rows = pick({0, 1, 3, 97, 530, 1100}), o.n = pick({1, 5, 40, 270}), o.v = pick({1, 7, 28, 100, 1500});
    o.tied = random() % 2;
    h = drawn(o.rows * o.n), w = drawn(o.n * o.v), b = drawn(o.v), weights = drawn(random() % 3 ? o.rows : 0);
    for (int64_t i = 0; i < o.rows; ++i) labels.push_back(int32_t(random() % (2 * o.v)) - o.v);
    o.h = h.data(), o.w = w.data(), o.b = b.data(), o.labels = labels.data();
    o.weights = weights.empty() ? nullptr : weights.data();
    asked = random() % 8;
  }

  std::string Words() const {
    return "output layer, N " + std::to_string(output.rows) + ", H " + std::to_string(output.n) + ", V " +
           std::to_string(output.v) + (output.tied ? ", tied" : "") +
           (output.weights ? ", gradients " + std::to_string(asked) : ", values only") + "\n";
  }

  Floats Run(Pool pool) const {
    Output o = output;
    Results results;
    const auto make = [&](int64_t count, bool needed = true) { return results.Make(needed ? count : 0); };
    o.nll = make(o.rows);
    o.d_h = make(o.rows * o.n, o.weights && asked & 1), o.d_w = make(o.n * o.v, o.weights && asked & 2);
    o.d_b = make(o.v, o.weights && asked & 4);
    ComputeOutput(pool, o);
    return results.Joined();
  }
};

struct SamplingCase {
  Sampling sampling{};
  std::deque<Floats> given;

  explicit SamplingCase(int seed) {
    std::mt19937 random(seed);
    const auto pick = [&](std::initializer_list<int64_t> of) { return of.begin()[random() % of.size()]; };
    const auto drawn = [&](int64_t count, float low = -0.5f, float high = 0.5f) -> const float* {
      given.emplace_back(count);
      for (float& f : given.back()) f = std::uniform_real_distribution<float>(low, high)(random);
      return given.back().data();
    };
    Sampling& s = sampling;
    const bool few = seed % 8 == 0;  // texts, so that units are divided
    s.cell = pick({kTanh, kRelu, kIdentity, kGru, kLstm});
    s.steps = pick({1, 2, 7, 12}), s.batch = few ? pick({1, 3, 5}) : pick({0, 1, 3, 8, 13, 50, 100});
    s.v = pick({1, 2, 28, 65, 300}), s.top_k = pick({0, 0, 1, 5, 400}), s.tied = random() % 2;
    given.push_back({float(pick({0, 1, 2})), random() % 2 ? 1.0f : 0.6f});
    s.settings = given.back().data();
    int64_t d = pick({1, 4, 17, 40});
    s.embedding = random() % 2 ? drawn(s.v * d) : nullptr;
    if (!s.embedding) d = s.v;
    for (int64_t l = pick({1, 2, 3}); l > 0; --l) {
      SampledLayer layer{};
      const int64_t n = layer.n = few ? pick({260, 400}) : pick({1, 5, 8, 16, 23, 33, 70}), gn = s.gates() * n;
      layer.d = d;
      layer.w_xh = drawn(d * gn), layer.b_h = drawn(gn), layer.w_hh = drawn(n * gn), layer.h0 = drawn(s.batch * n);
      layer.b_hn = s.cell == kGru ? drawn(n) : nullptr, layer.c0 = s.cell == kLstm ? drawn(s.batch * n) : nullptr;
      s.layers.push_back(layer);
      d = n;
    }
    s.w_hq = drawn(d * s.v), s.b_q = drawn(s.v), s.first = drawn(s.batch * s.v);
    s.uniform = drawn(s.steps * s.batch, 0.0f, 0.999f);
  }

  std::string Words() const {
    const Sampling& s = sampling;
    return "text, cell " + std::to_string(s.cell) + ", layers " + std::to_string(s.layers.size()) + ", T " +
           std::to_string(s.steps) + ", B " + std::to_string(s.batch) + ", V " + std::to_string(s.v) + ", H " +
           std::to_string(s.layers[0].n) + ", top_k " + std::to_string(s.top_k) + ", top_p " +
           std::to_string(s.settings[1]) + ", temperature " + std::to_string(s.settings[0]) + "\n";
  }

  Floats Run(Pool pool) const {
    Sampling s = sampling;
    Results results;
    std::vector<int32_t> tokens(s.steps * s.batch, -1);
    s.tokens = tokens.data(), s.logits = results.Make(s.batch * s.v);
    for (SampledLayer& layer : s.layers) {
      layer.h = results.Make(s.batch * layer.n), layer.c = results.Make(s.cell == kLstm ? s.batch * layer.n : 0);
    }
    Sample(pool, s);
    Floats joined = results.Joined();
    joined.insert(joined.end(), tokens.begin(), tokens.end());
    return joined;
  }
};

// Whether a case has the same bits whatever the threads; says where it has not.
template <typename Case>
bool IsSame(const Case& one, int seed, const std::vector<Pool>& pools) {
  const Floats expected = one.Run({nullptr, 1});
  for (const float f : expected) {
    if (f != f) return std::printf("case %d: a result is not a number\n%s", seed, one.Words().c_str()), false;
  }
  for (const Pool& pool : pools) {
    const Floats got = one.Run(pool);
    if (got.empty() || std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0) continue;
    size_t i = 0;
    while (std::memcmp(&got[i], &expected[i], sizeof(float)) == 0) ++i;
    std::printf("case %d: %d threads give other bits than one, %g and %g, from result %zu of %zu on\n%s", seed,
                int(pool.count), got[i], expected[i], i, got.size(), one.Words().c_str());
    return false;
  }
  return true;
}

int main(int count, char** arguments) {
  const int cases = count > 1 ? std::atoi(arguments[1]) : 200;
  Threads two(2), five(5), many(64);
  const std::vector<Pool> pools = {{&two, 2}, {&five, 5}, {&many, 64}};
  int divided = 0, of_texts = 0;
  for (int seed = 0; seed < cases; ++seed) {
    const Case one(seed);
    const SamplingCase text(seed);
    if (!IsSame(one, seed, pools) || !IsSame(OutputCase(seed), seed, pools) || !IsSame(text, seed, pools)) return 1;
    for (const Pool& pool : pools) {
      divided += Cut(one.layer, pool.count).unit_parts > 1;
      of_texts += SamplingCut(text.sampling, pool.count).unit_parts > 1;
    }
  }
  if (cases >= 16 && (divided == 0 || of_texts == 0)) return std::printf("units were never divided\n"), 1;
  std::printf(
      "%d layers of both kinds and texts have the same bits by 1, 2, 5 and 64 threads; units were divided %d "
      "and %d times\n",
      cases, divided, of_texts);
  return 0;
}
