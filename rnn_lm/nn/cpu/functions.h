// Functions of vectors, entry by entry.
#pragma once

#include <cmath>

#include "gemm.h"

namespace rnn_lm {

// tanh, by the rational approximation that Eigen and XLA use; within a few ulp. Where it is clamped it rounds to 1.
inline Vec Tanh(Vec x) {
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
inline Vec Sigmoid(Vec x) { return Tanh(x * 0.5f) * 0.5f + 0.5f; }

// e^x to 2 ulp for x ≤ 0, and 0 where it would be subnormal; infinite for x > 0, which only infinite logits have here.
inline Vec Exp(Vec x) {
  typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
  const Vec low = Vec{} - 87.3365448f, zero = {}, shift = Vec{} + 12582912.0f;  // 1.5 · 2²³ rounds to whole numbers
  const Vec bounded = x < low ? low : x, shifted = bounded * 1.44269504f + shift, n = shifted - shift;
  const Vec r = MultiplyAdd(n, Vec{} + 2.12194440e-4f, MultiplyAdd(n, Vec{} - 0.693359375f, bounded));  // x − n ln 2
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vec power = (Vec)(((Ints)shifted - (Ints)shift + 127) << 23);  // 2ⁿ
  return x < low ? zero : x > zero ? zero + INFINITY : p * power;
}

}  // namespace rnn_lm
