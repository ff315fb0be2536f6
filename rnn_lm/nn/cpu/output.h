// The output layer and its loss on a CPU: −ln P of each label, and the gradient of a weighted sum of them.
//
// Why: the logits [N, V] of a large vocabulary are too many to keep, and to compute them again on the way back is a
// fourth product. Here rows come in blocks. With the weights of the sum known, a block's logits become their adjoints
// as soon as they are there, and both products with these are added before the next block.
//
// No result depends on how many threads there are: they divide rows and columns of products, whose sums have one order.

#pragma once

#include <cmath>
#include <vector>

#include "functions.h"
#include "gemm.h"
#include "phases.h"

namespace rnn_lm {

// A block has 2²⁰ logits, or 768 rows if these are more, but no more than 160 MB of them.
constexpr int64_t kLogits = 1 << 20, kBlockRows = 768, kMostLogits = 40'000'000;

constexpr int64_t kColumns = 512;      // of a product that are packed at a time
constexpr int64_t kRowsAtOnce = 96;    // of a product that are multiplied by these
constexpr int64_t kLeastColumns = 64;  // of a thread, before threads divide rows

// What the layer is given, and makes. Arrays that are not there are null.
struct Output {
  int64_t rows, n, v;
  bool tied;                     // w is [V, H] in place of [H, V]
  const float *h, *w, *b;        // [N, H], w_hq, [V]
  const int32_t* labels;         // [N]
  const float* weights;          // [N], of the sum
  float *nll, *d_h, *d_w, *d_b;  // nats of each label; gradients of Σ weights · nll

  Matrix W() const { return tied ? Matrix{w, 1, n} : Matrix{w, v, 1}; }  // [H, V]
  Matrix WT() const { return {w, W().column, W().row}; }                 // [V, H]
};

// Some rows and columns of a matrix, those of one thread. Columns begin at panels.
struct Share {
  int64_t row = 0, rows = 0, column = 0, columns = 0;

  Share(int64_t part, int64_t parts, int64_t all_rows, int64_t all_columns) {
    const int64_t across = std::clamp<int64_t>(all_columns / kLeastColumns, 1, parts), down = parts / across;
    const int64_t i = part / across, j = part % across, panels = DividedUp(all_columns, kPanel);
    if (i >= down) return;  // this thread has none
    const auto at = [&](int64_t j) { return std::min(all_columns, panels * j / across * kPanel); };
    row = all_rows * i / down, rows = all_rows * (i + 1) / down - row;
    column = at(j), columns = at(j + 1) - column;
  }
};

// One thread's products, by blocks that stay in the caches.
class Product {
 public:
  Product() : panels_(MakeBuffer(kDepth * kColumns)), copy_(MakeBuffer(kRowsAtOnce * kDepth)) {}

  // c [rows, columns] (+)= a [rows, k] b [k, columns]. Where c is padded, its last panel may be written past its end.
  void operator()(int64_t rows, int64_t columns, int64_t k, Matrix a, Matrix b, float* c, int64_t ldc, bool add,
                  bool padded = false) {
    for (int64_t j = 0; j < columns; j += kColumns) {
      const int64_t width = std::min(columns - j, kColumns);
      InParts(k, kDepth, [&](int64_t begin, int64_t end) {
        for (int64_t p = 0; p < width; p += kPanel) {
          FillPanel(panels_.get() + p * (end - begin), b.From(begin, j + p), end - begin,
                    std::min<int64_t>(kPanel, width - p), kPanel);
        }
        InParts(rows, kRowsAtOnce, [&](int64_t r0, int64_t r1) {
          Multiply(r1 - r0, width, end - begin, a.From(r0, begin), c + r0 * ldc + j, ldc, add || begin > 0, padded);
        });
      });
    }
  }

 private:
  // By the panels that are there.
  void Multiply(int64_t rows, int64_t width, int64_t k, Matrix a, float* c, int64_t ldc, bool add, bool padded) {
    const float* from[kRowsAtOnce];
    const bool has_rows = a.column == 1;
    for (int64_t r = 0; has_rows && r < rows; ++r) from[r] = a.data + r * a.row;
    if (!has_rows) CopyFactors(copy_.get(), rows, k, [&](int64_t i) { return a.data + i * a.column; });
    const auto multiply = [&](const float* panel, float* to, int64_t ld, bool adding) {
      has_rows ? MultiplyRows(from, 0, rows, k, panel, 2, to, ld, adding)
               : MultiplyCopy(copy_.get(), rows, k, panel, to, ld, adding);
    };
    for (int64_t p = 0; p < width; p += kPanel) {
      const float* panel = panels_.get() + p * k;
      if (padded || width - p >= kPanel) {
        multiply(panel, c + p, ldc, add);
        continue;
      }
      float last[kRowsAtOnce * kPanel];
      multiply(panel, last, kPanel, false);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = p; i < width; ++i) c[r * ldc + i] = last[r * kPanel + i - p] + (add ? c[r * ldc + i] : 0.0f);
      }
    }
  }

  Buffer panels_, copy_;
};

template <typename Pool>
void ComputeOutput(Pool pool, const Output& o) {
  const int64_t v = o.v, ld = DividedUp(v, kPanel) * kPanel;
  const int64_t most = std::max(kRowsAtOnce, kMostLogits / ld);
  const int64_t block = std::min({o.rows, most, std::max(kBlockRows, kLogits / std::max(ld, o.n))});
  const int64_t parts = o.rows * o.n * v < kLeastCall ? 1 : std::max<int64_t>(1, pool.num_threads());
  const Buffer logits = MakeBuffer(block * ld), bias = MakeBuffer(ld);
  std::fill_n(std::copy_n(o.b, v, bias.get()), ld - v, -INFINITY);  // past the end there is no token
  std::vector<Product> products(parts);

  // Row r's nats, from its logits less the biases; these become the adjoints of the logits.
  const auto softmax = [&](int64_t r, float* l) {
    Vec highest = Vec{} - INFINITY, total = {};
    for (int64_t j = 0; j < ld; j += kLanes) {
      const Vec x = Load(l + j) + Load(bias.get() + j);
      Store(l + j, x);
      highest = x > highest ? x : highest;
    }
    float most = Reduced(highest, [](auto a, auto b) { return a > b ? a : b; });
    if (!std::isfinite(most)) most = 0;
    const int64_t label = o.labels[r] < 0 ? o.labels[r] + v : o.labels[r];  // as JAX: negative ones count from the end,
    const bool known = 0 <= label && label < v;                             // others are not a number
    const float of_label = known ? l[label] : NAN;
    for (int64_t j = 0; j < ld; j += kLanes) {
      const Vec e = Exp(Load(l + j) - most);
      total += e;
      if (o.weights) Store(l + j, e);
    }
    const float sum = Reduced(total, [](auto a, auto b) { return a + b; });
    o.nll[r] = most + std::log(sum) - of_label;
    if (!o.weights) return;
    const float scale = o.weights[r] / sum;
    for (int64_t j = 0; j < ld; j += kLanes) Store(l + j, Load(l + j) * scale);
    if (known) l[label] -= o.weights[r];
  };

  Phases phases;
  for (int64_t begin = 0; begin < o.rows; begin += block) {
    const int64_t rows = std::min(block, o.rows - begin);
    const float* h = o.h + begin * o.n;
    phases.push_back([&, rows, h](int64_t part) {
      const Share s(part, parts, rows, v);
      products[part](s.rows, s.columns, o.n, {h + s.row * o.n, o.n, 1}, o.W().From(0, s.column),
                     logits.get() + s.row * ld + s.column, ld, false, true);
    });
    phases.push_back([&, rows, begin](int64_t part) {
      for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; ++r)
        softmax(begin + r, logits.get() + r * ld);
    });
    if (!o.weights) continue;
    phases.push_back([&, rows, begin, h](int64_t part) {
      Product& product = products[part];
      const Matrix d{logits.get(), ld, 1}, dT{logits.get(), 1, ld};
      if (o.d_h) {
        const Share s(part, parts, rows, o.n);
        product(s.rows, s.columns, v, d.From(s.row, 0), o.WT().From(0, s.column),
                o.d_h + (begin + s.row) * o.n + s.column, o.n, false);
      }
      const bool add = begin > 0;
      if (o.d_w && o.tied) {  // [V, H]: the columns of a share are rows
        const Share s(part, parts, o.n, v);
        product(s.columns, s.rows, rows, dT.From(s.column, 0), Matrix{h, o.n, 1}.From(0, s.row),
                o.d_w + s.column * o.n + s.row, o.n, add);
      } else if (o.d_w) {
        const Share s(part, parts, o.n, v);
        product(s.rows, s.columns, rows, Matrix{h, 1, o.n}.From(s.row, 0), d.From(0, s.column),
                o.d_w + s.row * v + s.column, v, add);
      }
      if (o.d_b) {
        const int64_t panels = ld / kPanel;
        for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel) {
          Vec sums[2] = {};
          for (int64_t r = 0; r < rows; ++r) {
            const float* from = logits.get() + r * ld + panel * kPanel;
            sums[0] += Load(from), sums[1] += Load(from + kLanes);
          }
          float* to = o.d_b + panel * kPanel;
          Lanes(std::min<int64_t>(kPanel, v - panel * kPanel), [&](int64_t j, auto load, auto store) {
            store(to + j, add ? load(to + j) + sums[j / kLanes] : sums[j / kLanes]);
          });
        }
      }
    });
  }
  RunPhases(pool, parts, phases);
}

}  // namespace rnn_lm
