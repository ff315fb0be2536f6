// Vectors, and products of matrices that fit in them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

namespace rnn_lm {

// Registers: with AVX-512 there are 32 of 16 floats, else 16 of 8. A tile keeps kRows × 2 sums, 2 vectors of weights
// and a factor in them. RNN_LM_LANES and RNN_LM_ROWS let the tests try the tiles of another CPU.
#if defined(RNN_LM_LANES)
constexpr int kLanes = RNN_LM_LANES, kRows = RNN_LM_ROWS;
#elif defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;
#else
constexpr int kLanes = 8, kRows = 6;
#endif
constexpr int kPanel = 2 * kLanes;  // columns of a panel of packed weights
constexpr int64_t kDepth = 256;     // rows of a panel that are used at a time, so that they stay in the first cache

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec Load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

#ifndef __has_builtin
#define __has_builtin(x) 0
#endif

// a b + c, rounded once where the CPU can. Left to the compiler, it depends on the size of a tile.
inline Vec MultiplyAdd(Vec a, Vec b, Vec c) {
#if __has_builtin(__builtin_elementwise_fma)
  return __builtin_elementwise_fma(a, b, c);
#elif defined(__AVX512F__) && !defined(RNN_LM_LANES)
  return __builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4);  // by the current rounding
#elif defined(__FMA__) && !defined(RNN_LM_LANES)
  return __builtin_ia32_vfmaddps256(a, b, c);
#elif defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

// All lanes in one, by halves: f takes vectors, and numbers at last.
template <typename V, typename F>
inline float Reduced(V v, F f) {
  if constexpr (sizeof(V) == 4 * sizeof(float)) {
    return f(f(v[0], v[1]), f(v[2], v[3]));
  } else {
    typedef float Half __attribute__((vector_size(sizeof(V) / 2)));
    Half halves[2];
    std::memcpy(halves, &v, sizeof(V));
    return Reduced(f(halves[0], halves[1]), f);
  }
}

inline int64_t DividedUp(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Calls f(i, load, store) for i = 0, lanes, … < n: whole vectors, and the last few entries by way of a buffer.
template <typename F>
inline void Lanes(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    f(i, [](const float* p) { return Load(p); }, [](float* p, Vec v) { Store(p, v); });
  }
  if (i < n) {
    const size_t bytes = (n - i) * sizeof(float);
    f(
        i,
        [bytes](const float* p) {
          Vec v = {};
          std::memcpy(&v, p, bytes);
          return v;
        },
        [bytes](float* p, Vec v) { std::memcpy(p, &v, bytes); });
  }
}

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

// Not set to anything.
inline Buffer MakeBuffer(int64_t floats) {
  void* memory = std::aligned_alloc(64, DividedUp(std::max<int64_t>(floats, 1), 16) * 64);
  if (!memory) throw std::bad_alloc();
  return Buffer(static_cast<float*>(memory));
}

// Calls f(std::integral_constant<int, m>) for the m from 1 to kRows that is asked for.
template <int kM = kRows, typename F>
inline void WithRows(int64_t m, F f) {
  if constexpr (kM > 0) {
    if (m == kM) return f(std::integral_constant<int, kM>());
    WithRows<kM - 1>(m, f);
  }
}

// Calls f(begin, end) for 0 to n in parts of at most `most`, which differ by one in size.
template <typename F>
inline void InParts(int64_t n, int64_t most, F f) {
  const int64_t parts = DividedUp(n, most);
  for (int64_t part = 0; part < parts; ++part) f(n * part / parts, n * (part + 1) / parts);
}

// A matrix, or the transpose of one: how far apart its rows and its columns are, one of which is 1.
struct Matrix {
  const float* data;
  int64_t row, column;

  Matrix From(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

// Copies columns w [k, width] to rows that are a stride apart. A width that the compiler knows is twice as fast.
template <typename Width>
inline void CopyColumns(float* to, Matrix w, int64_t k, Width width, int64_t stride) {
  if (w.column == 1) {
    for (int64_t i = 0; i < k; ++i) std::memcpy(to + i * stride, w.data + i * w.row, width * sizeof(float));
    return;
  }
  float block[kPanel][16];  // read row by row: rows far apart share few places in the first cache
  for (int64_t i = 0; i < k; i += 16) {
    const int64_t count = std::min<int64_t>(16, k - i);
    for (int64_t c = 0; c < width; ++c) std::memcpy(block[c], w.data + c * w.column + i, count * sizeof(float));
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t c = 0; c < width; ++c) to[(i + j) * stride + c] = block[c][j];
    }
  }
}

// A panel [k, stride]: columns w [k, width], filled up with zeros.
inline void FillPanel(float* to, Matrix w, int64_t k, int64_t width, int64_t stride) {
  if (width == kPanel) return CopyColumns(to, w, k, std::integral_constant<int64_t, kPanel>(), kPanel);
  if (width < stride) std::memset(to, 0, k * stride * sizeof(float));
  CopyColumns(to, w, k, width, stride);
}

// out [rows, vectors] (+)= the columns [begin, begin + k) of rows a, times a panel [k, vectors], one or two.
void MultiplyRows(const float* const* a, int64_t begin, int64_t rows, int64_t k, const float* panel, int vectors,
                  float* out, int64_t ldo, bool add);

// out [rows, kPanel] (+)= a left matrix [rows, k] that `CopyFactors` has copied, times a panel [k, kPanel].
void MultiplyCopy(const float* copy, int64_t rows, int64_t k, const float* panel, float* out, int64_t ldo, bool add);

// Copies a left matrix [rows, k], given as columns, as tiles read it: those of r rows begin at to + r · k.
template <typename ColumnOf>
inline void CopyFactors(float* to, int64_t rows, int64_t k, ColumnOf column_of) {
  InParts(rows, kRows, [&](int64_t r0, int64_t r1) {
    WithRows(r1 - r0, [&](auto m) {
      for (int64_t i = 0; i < k; ++i) std::memcpy(to + r0 * k + i * m(), column_of(i) + r0, m() * sizeof(float));
    });
  });
}

// Weights w [k, gates, n] (or the transpose, [gates · n, k]) as panels of the same units of all gates, one after the
// other: for each kPanel units, for each gate [k][units], filled up with zeros to whole vectors.
class Packed {
 public:
  Packed(int64_t k, int64_t n, int64_t gates)
      : k_(k), n_(n), gates_(gates), data_(MakeBuffer(k * gates * DividedUp(n, kLanes) * kLanes)) {}

  int64_t panels() const { return DividedUp(n_, kPanel); }
  int Vectors(int64_t panel) const { return n_ - panel * kPanel > kLanes ? 2 : 1; }

  float* At(int64_t panel, int64_t gate) const {
    return data_.get() + k_ * (panel * kPanel * gates_ + gate * Vectors(panel) * kLanes);
  }

  void Fill(const float* w, bool transposed, int64_t panel) {
    const int64_t stride = Vectors(panel) * kLanes, width = std::min(n_ - panel * kPanel, stride);
    for (int64_t gate = 0; gate < gates_; ++gate) {
      const int64_t column = gate * n_ + panel * kPanel;
      const Matrix from = transposed ? Matrix{w + column * k_, 1, k_} : Matrix{w + column, gates_ * n_, 1};
      FillPanel(At(panel, gate), from, k_, width, stride);
    }
  }

  // out [rows, vectors] (+)= a [rows, k] times the panel of a gate; a's rows may lie anywhere.
  void Multiply(const float* const* a, int64_t rows, int64_t panel, int64_t gate, float* out, int64_t ldo,
                bool add = false) const {
    const int vectors = Vectors(panel);
    InParts(k_, kDepth, [&](int64_t begin, int64_t end) {
      const float* from = At(panel, gate) + begin * vectors * kLanes;
      MultiplyRows(a, begin, rows, end - begin, from, vectors, out, ldo, add || begin > 0);
    });
  }

 private:
  int64_t k_, n_, gates_;
  Buffer data_;
};

// Copies of some rows a [rows, k] in the order in which tiles of their transpose read them.
class Transposed {
 public:
  Transposed(int64_t begin, int64_t end) : begin_(begin), k_(end - begin), copy_(MakeBuffer(kDepth * k_)) {}

  template <typename RowOf>
  void Fill(int64_t rows, RowOf row_of) {
    rows_ = rows;
    CopyFactors(copy_.get(), k_, rows, [&](int64_t r) { return row_of(r) + begin_; });
  }

  // sums [k, kPanel] += aᵀ d, where d is [rows, kPanel]
  void AddProduct(const float* d, float* sums) const { MultiplyCopy(copy_.get(), k_, rows_, d, sums, kPanel, true); }

 private:
  int64_t begin_, k_, rows_ = 0;
  Buffer copy_;
};

}  // namespace rnn_lm
