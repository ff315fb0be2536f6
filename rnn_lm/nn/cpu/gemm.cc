// The products of gemm.h, for each number of rows.

#include "gemm.h"

namespace rnn_lm {
namespace {

// The factors of a tile: of rows of the left matrix, or of a copy that has those of one step side by side.
template <int kM>
struct OfRows {
  OfRows(const float* const* a, int64_t begin) {
    for (int m = 0; m < kM; ++m) rows[m] = a[m] + begin;
  }
  float operator()(int m, int64_t i) const { return rows[m][i]; }

  const float* rows[kM];
};
template <int kM>
struct OfCopy {
  float operator()(int m, int64_t i) const { return copy[i * kM + m]; }

  const float* copy;
};

// out [kM, kV vectors] (+)= factors [kM, k] times a panel [k, kV vectors].
template <int kM, int kV, typename Factors>
inline void Tile(Factors factors, const float* panel, int64_t k, float* out, int64_t ldo, bool add) {
  Vec sums[kM][kV] = {};
  for (int64_t i = 0; i < k; ++i) {
    Vec b[kV];
    for (int v = 0; v < kV; ++v) b[v] = Load(panel + (i * kV + v) * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) {
      const Vec factor = factors(m, i) - Vec{};  // in all lanes
      for (int v = 0; v < kV; ++v) sums[m][v] = MultiplyAdd(factor, b[v], sums[m][v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kM; ++m) {
    for (int v = 0; v < kV; ++v) {
      float* at = out + m * ldo + v * kLanes;
      Store(at, add ? Load(at) + sums[m][v] : sums[m][v]);
    }
  }
}

// out [rows, kV vectors] (+)= a left matrix [rows, k] times a panel [k, kV vectors]; factors_of(m, r) are those of its
// m rows from r on.
template <int kV, typename FactorsOf>
void MultiplyPanel(int64_t rows, int64_t k, FactorsOf factors_of, const float* panel, float* out, int64_t ldo,
                   bool add) {
  InParts(rows, kRows, [&](int64_t r0, int64_t r1) {
    WithRows(r1 - r0, [&](auto m) { Tile<m(), kV>(factors_of(m, r0), panel, k, out + r0 * ldo, ldo, add); });
  });
}

}  // namespace

void MultiplyRows(const float* const* a, int64_t begin, int64_t rows, int64_t k, const float* panel, int vectors,
                  float* out, int64_t ldo, bool add) {
  const auto factors_of = [&](auto m, int64_t r) { return OfRows<m()>(a + r, begin); };
  if (vectors == 2) {
    MultiplyPanel<2>(rows, k, factors_of, panel, out, ldo, add);
  } else {
    MultiplyPanel<1>(rows, k, factors_of, panel, out, ldo, add);
  }
}

void MultiplyCopy(const float* copy, int64_t rows, int64_t k, const float* panel, float* out, int64_t ldo, bool add) {
  const auto factors_of = [&](auto m, int64_t r) { return OfCopy<m()>{copy + r * k}; };
  MultiplyPanel<2>(rows, k, factors_of, panel, out, ldo, add);
}

}  // namespace rnn_lm
