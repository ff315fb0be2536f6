// The equations of the three cells and their derivatives, for some units of one sequence at one time step.
#pragma once

#include "functions.h"
#include "gemm.h"

namespace rnn_lm {

enum Cell : int64_t { kTanh, kRelu, kIdentity, kGru, kLstm };

// Calls f(std::integral_constant<int64_t, cell>).
template <typename F>
inline void ForCell(int64_t cell, F f) {
  switch (cell) {
    case kTanh: return f(std::integral_constant<int64_t, kTanh>());
    case kRelu: return f(std::integral_constant<int64_t, kRelu>());
    case kIdentity: return f(std::integral_constant<int64_t, kIdentity>());
    case kGru: return f(std::integral_constant<int64_t, kGru>());
    default: return f(std::integral_constant<int64_t, kLstm>());
  }
}

constexpr int64_t Gates(int64_t cell) { return cell == kLstm ? 4 : cell == kGru ? 3 : 1; }
constexpr int64_t Saved(int64_t cell) { return cell == kLstm || cell == kGru ? 4 : 0; }

// Pointers to the first of the units; entries of the gates are a stride apart. What a cell has no use for points
// nowhere.
struct ForwardStep {
  const float* projected;
  int64_t projected_stride;
  const float *b_h, *recurrent, *h_before, *c_before, *b_hn;
  float *h, *c, *saved;
  int64_t n;  // H, the stride of b_h and saved; that of recurrent is kPanel
};

template <int64_t kCell>
inline void ForwardGates(int64_t units, const ForwardStep& s) {
  const int64_t n = s.n;
  Lanes(units, [&](int64_t j, auto load, auto store) {
    const auto recurrent = [&](int gate) { return Load(s.recurrent + gate * kPanel + j); };  // filled up with zeros
    const auto projected = [&](int gate) {
      return load(s.projected + gate * s.projected_stride + j) + load(s.b_h + gate * n + j);
    };
    if constexpr (kCell == kLstm) {
      const auto z = [&](int gate) { return projected(gate) + recurrent(gate); };
      const Vec i = Sigmoid(z(0)), f = Sigmoid(z(1)), g = Tanh(z(2)), o = Sigmoid(z(3));
      const Vec c = f * load(s.c_before + j) + i * g;
      store(s.c + j, c);
      store(s.h + j, o * Tanh(c));
      store(s.saved + j, i);
      store(s.saved + n + j, f);
      store(s.saved + 2 * n + j, g);
      store(s.saved + 3 * n + j, o);
    } else if constexpr (kCell == kGru) {
      const Vec r = Sigmoid(projected(0) + recurrent(0)), z = Sigmoid(projected(1) + recurrent(1));
      const Vec u = recurrent(2) + load(s.b_hn + j), c = Tanh(projected(2) + r * u);
      store(s.h + j, c + z * (load(s.h_before + j) - c));
      store(s.saved + j, r);
      store(s.saved + n + j, z);
      store(s.saved + 2 * n + j, c);
      store(s.saved + 3 * n + j, u);
    } else {
      const Vec z = projected(0) + recurrent(0), zero = {};
      store(s.h + j, kCell == kTanh ? Tanh(z) : kCell == kRelu ? (z < zero ? zero : z) : z);
    }
  });
}

struct BackwardStep {
  const float *h, *h_before, *c, *c_before, *saved, *d_hs, *d_cs;
  float *d_h, *d_c;  // of the state after the step; d_c becomes that of the
                     // state before, d_h what passes by the product
  float *d_projected, *d_recurrent;
  int64_t n;
};

template <int64_t kCell>
inline void BackwardGates(int64_t units, const BackwardStep& s) {
  const int64_t n = s.n;
  Lanes(units, [&](int64_t j, auto load, auto store) {
    const Vec d_h = load(s.d_h + j) + load(s.d_hs + j);
    if constexpr (kCell == kLstm) {
      const Vec i = load(s.saved + j), f = load(s.saved + n + j);
      const Vec g = load(s.saved + 2 * n + j), o = load(s.saved + 3 * n + j), shown = Tanh(load(s.c + j));
      const Vec d_c = load(s.d_c + j) + load(s.d_cs + j) + d_h * o * (1.0f - shown * shown);
      store(s.d_c + j, d_c * f);
      store(s.d_projected + j, d_c * g * i * (1.0f - i));
      store(s.d_projected + n + j, d_c * load(s.c_before + j) * f * (1.0f - f));
      store(s.d_projected + 2 * n + j, d_c * i * (1.0f - g * g));
      store(s.d_projected + 3 * n + j, d_h * shown * o * (1.0f - o));
    } else if constexpr (kCell == kGru) {
      const Vec r = load(s.saved + j), z = load(s.saved + n + j);
      const Vec c = load(s.saved + 2 * n + j), u = load(s.saved + 3 * n + j);
      const Vec d_n = d_h * (1.0f - z) * (1.0f - c * c), d_r = d_n * u * r * (1.0f - r);
      const Vec d_z = d_h * (load(s.h_before + j) - c) * z * (1.0f - z);
      store(s.d_h + j, d_h * z);
      store(s.d_projected + j, d_r);
      store(s.d_projected + n + j, d_z);
      store(s.d_projected + 2 * n + j, d_n);
      store(s.d_recurrent + j, d_r);
      store(s.d_recurrent + n + j, d_z);
      store(s.d_recurrent + 2 * n + j, d_n * r);
    } else {
      const Vec h = load(s.h + j), zero = {};
      store(s.d_projected + j, kCell == kTanh ? d_h * (1.0f - h * h) : kCell == kRelu ? (h > zero ? d_h : zero) : d_h);
    }
  });
}

}  // namespace rnn_lm
