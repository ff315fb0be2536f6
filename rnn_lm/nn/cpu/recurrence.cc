// The recurrence of `unroll` on a CPU: whole sequences in one call, forward and backward.
//
// Why: in a compiled loop XLA packs w_hh anew at every step, runs everything element-wise on one thread, and wakes a
// second thread for each product. Here w_hh is packed once a call and each thread takes its own rows of the batch
// through all time steps, so that threads never wait for each other.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
constexpr int kPanel = 2 * kLanes;  // columns of a panel of packed weights
constexpr int kRows = 6;            // rows of a tile: 6 × 2 accumulators, 2 weights and 1 factor fit 16 registers

int64_t RoundUp(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

Vec Load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
void Store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

// tanh, by the rational approximation that Eigen and XLA use; within a few ulp. Where it is clamped it rounds to 1.
Vec Tanh(Vec x) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  const Vec limit = Vec{} + 7.99881172180175781f;
#else
  const Vec limit = Vec{} + 7.90531110763549805f;
#endif
  x = x < -limit ? -limit : x;
  x = x > limit ? limit : x;
  const Vec s = x * x;
  Vec p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * s + -8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  Vec q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}
Vec Sigmoid(Vec x) { return Tanh(x * 0.5f) * 0.5f + 0.5f; }

// Calls f(i, load, store) for i = 0, lanes, … < n: whole vectors, and the last few entries by way of a buffer.
template <typename F>
void Lanes(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    f(i, [](const float* p) { return Load(p); }, [](float* p, Vec v) { Store(p, v); });
  }
  if (i < n) {
    const size_t bytes = (n - i) * sizeof(float);
    f(i,
      [bytes](const float* p) {
        Vec v = {};
        std::memcpy(&v, p, bytes);
        return v;
      },
      [bytes](float* p, Vec v) { std::memcpy(p, &v, bytes); });
  }
}

// w [K, N] (or its transpose, where stored as [N, K]) as panels [N / kPanel][K][kPanel], filled up with zeros.
struct Packed {
  int64_t k, n, stride;
  std::unique_ptr<float, decltype(&std::free)> data{nullptr, std::free};

  Packed(const float* w, int64_t k, int64_t n, bool transposed) : k(k), n(n), stride(RoundUp(n)) {
    data.reset(static_cast<float*>(std::aligned_alloc(64, k * stride * sizeof(float))));
    for (int64_t j = 0; j < stride; j += kPanel) {
      float* panel = data.get() + j * k;
      const int64_t width = std::min<int64_t>(kPanel, n - j);
      if (width < kPanel) std::memset(panel, 0, k * kPanel * sizeof(float));
      if (!transposed) {
        for (int64_t i = 0; i < k; ++i) std::memcpy(panel + i * kPanel, w + i * n + j, width * sizeof(float));
      } else {
        for (int64_t c = 0; c < width; ++c) {
          for (int64_t i = 0; i < k; ++i) panel[i * kPanel + c] = w[(j + c) * k + i];
        }
      }
    }
  }
};

template <int kM>
void Tile(const float* a, int64_t lda, const float* panel, int64_t k, float* out, int64_t ldo) {
  Vec sums[kM][2] = {};
  for (int64_t i = 0; i < k; ++i) {
    const Vec b0 = Load(panel + i * kPanel), b1 = Load(panel + i * kPanel + kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const float factor = a[m * lda + i];
      sums[m][0] += factor * b0;
      sums[m][1] += factor * b1;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    Store(out + m * ldo, sums[m][0]);
    Store(out + m * ldo + kLanes, sums[m][1]);
  }
}

// out [rows, w.stride] = a [rows, w.k] times w.
void Multiply(const float* a, int64_t lda, int64_t rows, const Packed& w, float* out) {
  using Kernel = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t);
  static constexpr Kernel kKernels[] = {Tile<1>, Tile<1>, Tile<2>, Tile<3>, Tile<4>, Tile<5>, Tile<6>};
  const int64_t tiles = (rows + kRows - 1) / kRows;  // of sizes that differ by one row at most
  for (int64_t j = 0; j < w.stride; j += kPanel) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t begin = rows * tile / tiles, end = rows * (tile + 1) / tiles;
      kKernels[end - begin](a + begin * lda, lda, w.data.get() + j * w.k, w.k, out + begin * w.stride + j, w.stride);
    }
  }
}

// Runs work(begin, end) on parts of the rows, on the threads that are free. Never waits for a part that nobody has
// begun, so that calls on a full thread pool cannot wait for each other.
template <typename F>
void ForRows(ffi::ThreadPool pool, int64_t rows, F work) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), rows / kRows));
  struct State {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto state = std::make_shared<State>();
  auto take = [state, rows, parts, work] {
    for (int64_t part; (part = state->next.fetch_add(1)) < parts;) {
      work(rows * part / parts, rows * (part + 1) / parts);
      std::lock_guard<std::mutex> lock(state->mutex);
      if (++state->done == parts) state->all_done.notify_all();
    }
  };
  for (int64_t part = 1; part < parts; ++part) pool.Schedule(decltype(take)(take));
  take();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == parts; });
}

enum Cell : int64_t { kTanh, kRelu, kIdentity, kGru, kLstm };

constexpr int64_t Gates(int64_t cell) { return cell == kLstm ? 4 : cell == kGru ? 3 : 1; }

// Pointers to one row of one time step. Those that a cell has no use for point nowhere.
struct ForwardStep {
  const float *projected, *recurrent, *h_before, *c_before, *b_hn;
  float *h, *c, *saved;
};

void ForwardGates(int64_t cell, int64_t n, const ForwardStep& s) {
  switch (cell) {
    case kLstm:
      return Lanes(n, [&](int64_t j, auto load, auto store) {
        const auto z = [&](int gate) { return load(s.projected + gate * n + j) + load(s.recurrent + gate * n + j); };
        const Vec i = Sigmoid(z(0)), f = Sigmoid(z(1)), g = Tanh(z(2)), o = Sigmoid(z(3));
        const Vec c = f * load(s.c_before + j) + i * g;
        store(s.c + j, c);
        store(s.h + j, o * Tanh(c));
        store(s.saved + j, i);
        store(s.saved + n + j, f);
        store(s.saved + 2 * n + j, g);
        store(s.saved + 3 * n + j, o);
      });
    case kGru:
      return Lanes(n, [&](int64_t j, auto load, auto store) {
        const Vec r = Sigmoid(load(s.projected + j) + load(s.recurrent + j));
        const Vec z = Sigmoid(load(s.projected + n + j) + load(s.recurrent + n + j));
        const Vec u = load(s.recurrent + 2 * n + j) + load(s.b_hn + j);
        const Vec c = Tanh(load(s.projected + 2 * n + j) + r * u);
        store(s.h + j, c + z * (load(s.h_before + j) - c));
        store(s.saved + j, r);
        store(s.saved + n + j, z);
        store(s.saved + 2 * n + j, c);
        store(s.saved + 3 * n + j, u);
      });
    default:
      return Lanes(n, [&](int64_t j, auto load, auto store) {
        const Vec z = load(s.projected + j) + load(s.recurrent + j), zero = {};
        store(s.h + j, cell == kTanh ? Tanh(z) : cell == kRelu ? (z < zero ? zero : z) : z);
      });
  }
}

struct BackwardStep {
  const float *h, *h_before, *c, *c_before, *saved, *d_hs, *d_cs;
  float *d_h, *d_c;  // of the state after the step; d_c becomes that of the state before
  float *d_projected, *d_recurrent, *d_direct;
};

void BackwardGates(int64_t cell, int64_t n, const BackwardStep& s) {
  switch (cell) {
    case kLstm:
      return Lanes(n, [&](int64_t j, auto load, auto store) {
        const Vec i = load(s.saved + j), f = load(s.saved + n + j);
        const Vec g = load(s.saved + 2 * n + j), o = load(s.saved + 3 * n + j);
        const Vec d_h = load(s.d_h + j) + load(s.d_hs + j), shown = Tanh(load(s.c + j));
        const Vec d_c = load(s.d_c + j) + load(s.d_cs + j) + d_h * o * (1.0f - shown * shown);
        store(s.d_c + j, d_c * f);
        store(s.d_projected + j, d_c * g * i * (1.0f - i));
        store(s.d_projected + n + j, d_c * load(s.c_before + j) * f * (1.0f - f));
        store(s.d_projected + 2 * n + j, d_c * i * (1.0f - g * g));
        store(s.d_projected + 3 * n + j, d_h * shown * o * (1.0f - o));
      });
    case kGru:
      return Lanes(n, [&](int64_t j, auto load, auto store) {
        const Vec r = load(s.saved + j), z = load(s.saved + n + j);
        const Vec c = load(s.saved + 2 * n + j), u = load(s.saved + 3 * n + j);
        const Vec d_h = load(s.d_h + j) + load(s.d_hs + j);
        const Vec d_n = d_h * (1.0f - z) * (1.0f - c * c), d_r = d_n * u * r * (1.0f - r);
        const Vec d_z = d_h * (load(s.h_before + j) - c) * z * (1.0f - z);
        store(s.d_direct + j, d_h * z);
        store(s.d_projected + j, d_r);
        store(s.d_projected + n + j, d_z);
        store(s.d_projected + 2 * n + j, d_n);
        store(s.d_recurrent + j, d_r);
        store(s.d_recurrent + n + j, d_z);
        store(s.d_recurrent + 2 * n + j, d_n * r);
      });
    default:
      return Lanes(n, [&](int64_t j, auto load, auto store) {
        const Vec h = load(s.h + j), d_h = load(s.d_h + j) + load(s.d_hs + j), zero = {};
        store(s.d_projected + j,
              cell == kTanh ? d_h * (1.0f - h * h) : cell == kRelu ? (h > zero ? d_h : zero) : d_h);
      });
  }
}

// The arrays of a call, by position; all float32. What a cell does not have (c, b_hn, a d_recurrent that differs from
// d_projected) comes with no elements.
const float* In(ffi::RemainingArgs arguments, size_t i) { return arguments.get<ffi::AnyBuffer>(i)->typed_data<float>(); }
float* Out(ffi::RemainingRets results, size_t i) {
  return (*results.get<ffi::AnyBuffer>(i))->typed_data<float>();
}

// Python has checked all shapes before; what it overlooked must not become a read or a write past an array's end.
// In functions of their own: beside the loops, they cost these 4 %.
bool Has(const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> shape) {
  const auto dimensions = buffer.dimensions();
  return std::equal(dimensions.begin(), dimensions.end(), shape.begin(), shape.end());
}
bool HasIf(bool needed, const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> shape) {
  return needed ? Has(buffer, shape) : buffer.element_count() == 0;
}
ffi::Error Misfit(const char* what) {
  return ffi::Error::InvalidArgument(std::string("rnn_lm: the dimensions of ") + what + " do not go together");
}

__attribute__((noinline)) ffi::Error CheckForward(int64_t cell, ffi::RemainingArgs in, ffi::RemainingRets out) {
  const auto arg = [&](size_t i) { return *in.get<ffi::AnyBuffer>(i); };
  const auto result = [&](size_t i) { return **out.get<ffi::AnyBuffer>(i); };
  const bool lstm = cell == kLstm;
  const auto shape = arg(0).dimensions();
  if (shape.size() != 3) return Misfit("x w_xh + b_h");
  const int64_t steps = shape[0], batch = shape[1], gn = shape[2], n = gn / Gates(cell);
  if (gn != n * Gates(cell) || !Has(arg(1), {n, gn})) return Misfit("w_hh");
  if (!Has(arg(2), {batch, n}) || !HasIf(lstm, arg(3), {batch, n})) return Misfit("the carry");
  if (!HasIf(cell == kGru, arg(4), {n})) return Misfit("b_hn");
  if (!Has(result(0), {steps, batch, n}) || !HasIf(lstm, result(1), {steps, batch, n})) return Misfit("the states");
  if (result(2).element_count() > 0 && !Has(result(2), {steps, batch, 4 * n})) return Misfit("what is saved");
  return ffi::Error::Success();
}

__attribute__((noinline)) ffi::Error CheckBackward(int64_t cell, ffi::RemainingArgs in, ffi::RemainingRets out) {
  const auto arg = [&](size_t i) { return *in.get<ffi::AnyBuffer>(i); };
  const auto result = [&](size_t i) { return **out.get<ffi::AnyBuffer>(i); };
  const bool lstm = cell == kLstm, gru = cell == kGru;
  const auto shape = arg(3).dimensions();
  if (shape.size() != 3) return Misfit("the states");
  const int64_t steps = shape[0], batch = shape[1], n = shape[2], gn = Gates(cell) * n;
  if (!Has(arg(0), {n, gn})) return Misfit("w_hh");
  if (!Has(arg(1), {batch, n}) || !HasIf(lstm, arg(2), {batch, n})) return Misfit("the carry");
  if (!HasIf(lstm, arg(4), {steps, batch, n})) return Misfit("the states");
  if (!HasIf(lstm || gru, arg(5), {steps, batch, 4 * n})) return Misfit("what is saved");
  if (!Has(arg(6), {steps, batch, n}) || !HasIf(lstm, arg(7), {steps, batch, n})) return Misfit("the states' adjoints");
  if (!Has(result(0), {steps, batch, gn}) || !HasIf(gru, result(1), {steps, batch, gn})) return Misfit("the adjoints");
  if (!Has(result(2), {batch, n}) || !HasIf(lstm, result(3), {batch, n})) return Misfit("the carry's adjoint");
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, int64_t cell, bool reverse, ffi::RemainingArgs in, ffi::RemainingRets out) {
  if (ffi::Error error = CheckForward(cell, in, out); error.failure()) return error;
  const float *projected = In(in, 0), *w_hh = In(in, 1), *h0 = In(in, 2), *c0 = In(in, 3), *b_hn = In(in, 4);
  float *hs = Out(out, 0), *cs = Out(out, 1), *saved = Out(out, 2);
  const bool saving = (*out.get<ffi::AnyBuffer>(2))->element_count() > 0;
  const auto shape = in.get<ffi::AnyBuffer>(0)->dimensions();
  const int64_t steps = shape[0], batch = shape[1], gn = shape[2], n = gn / Gates(cell);
  const Packed w(w_hh, n, gn, /*transposed=*/false);
  ForRows(pool, batch, [&](int64_t begin, int64_t end) {
    std::vector<float> recurrent((end - begin) * w.stride), unsaved(4 * n);
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t t = reverse ? steps - 1 - s : s, before = reverse ? t + 1 : t - 1;
      const float* h_before = s ? hs + before * batch * n : h0;
      const float* c_before = s ? cs + before * batch * n : c0;
      Multiply(h_before + begin * n, n, end - begin, w, recurrent.data());
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = t * batch + r;
        ForwardGates(cell, n,
                     {projected + at * gn, recurrent.data() + (r - begin) * w.stride, h_before + r * n,
                      c_before + r * n, b_hn, hs + at * n, cs + at * n, saving ? saved + at * 4 * n : unsaved.data()});
      }
    }
  });
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, int64_t cell, bool reverse, ffi::RemainingArgs in, ffi::RemainingRets out) {
  if (ffi::Error error = CheckBackward(cell, in, out); error.failure()) return error;
  const float *w_hh = In(in, 0), *h0 = In(in, 1), *c0 = In(in, 2), *hs = In(in, 3), *cs = In(in, 4);
  const float *saved = In(in, 5), *d_hs = In(in, 6), *d_cs = In(in, 7);
  float *d_projected = Out(out, 0), *d_recurrent = Out(out, 1), *d_h0 = Out(out, 2), *d_c = Out(out, 3);
  const auto shape = in.get<ffi::AnyBuffer>(3)->dimensions();
  const int64_t steps = shape[0], batch = shape[1], n = shape[2], gn = Gates(cell) * n;
  const bool lstm = cell == kLstm, gru = cell == kGru;
  const Packed w(w_hh, gn, n, /*transposed=*/true);
  ForRows(pool, batch, [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    std::vector<float> d_h(rows * w.stride), d_direct(gru ? rows * n : 0);
    if (lstm) std::fill_n(d_c + begin * n, rows * n, 0.0f);  // becomes d_c0, in its place from the start
    const float* adjoint = gru ? d_recurrent : d_projected;
    for (int64_t s = steps - 1; s >= 0; --s) {
      const int64_t t = reverse ? steps - 1 - s : s, before = reverse ? t + 1 : t - 1;
      const float* h_before = s ? hs + before * batch * n : h0;
      const float* c_before = s ? cs + before * batch * n : c0;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = t * batch + begin + r;
        BackwardGates(cell, n,
                      {hs + at * n, h_before + (begin + r) * n, cs + at * n, c_before + (begin + r) * n,
                       saved + at * 4 * n, d_hs + at * n, d_cs + at * n, d_h.data() + r * w.stride,
                       d_c + (begin + r) * n, d_projected + at * gn, d_recurrent + at * gn, d_direct.data() + r * n});
      }
      Multiply(adjoint + (t * batch + begin) * gn, gn, rows, w, d_h.data());
      for (int64_t r = 0; gru && r < rows; ++r) {
        for (int64_t j = 0; j < n; ++j) d_h[r * w.stride + j] += d_direct[r * n + j];
      }
    }
    for (int64_t r = 0; r < rows; ++r) std::copy_n(d_h.data() + r * w.stride, n, d_h0 + (begin + r) * n);
  });
  return ffi::Error::Success();
}

}  // namespace

#define RNN_LM_BINDING                                                                             \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("cell").Attr<bool>("reverse").RemainingArgs().RemainingRets()
XLA_FFI_DEFINE_HANDLER_SYMBOL(RnnLmForward, Forward, RNN_LM_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(RnnLmBackward, Backward, RNN_LM_BINDING);
