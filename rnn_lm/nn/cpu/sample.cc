// The function that XLA calls to draw text.

#include "sample.h"

#include "arguments.h"

namespace rnn_lm {
namespace {

void CallSample(Arguments& arguments, ThreadPool pool) {
  const int64_t layers = (arguments.count() - 6) / 6;
  if (!arguments.Have(6 + 6 * std::max<int64_t>(1, layers), 2 + 2 * layers)) return;
  const auto uniform = arguments.Shape(0), vectors = arguments.Shape(3), biases = arguments.Shape(5);
  const auto n_of = [&](int64_t layer) -> int64_t {
    const auto h0 = arguments.Shape(6 + 6 * layer + 4);
    return h0.size() == 2 ? h0[1] : 0;
  };
  Sampling s{};
  const int64_t cell = s.cell = arguments.Attribute("cell", kLstm);
  const bool tied = s.tied = arguments.Attribute("tied");
  s.top_k = arguments.Attribute("top_k");
  s.steps = uniform.size() == 2 ? uniform[0] : 0, s.batch = uniform.size() == 2 ? uniform[1] : 0;
  s.v = biases.size() == 1 ? biases[0] : 0;
  int64_t d = !arguments.IsThere(3) ? s.v : vectors.size() == 2 ? vectors[1] : 0;
  const int64_t n = n_of(layers - 1);
  s.uniform = arguments.In("the uniform numbers", true, {s.steps, s.batch});
  s.settings = arguments.In("temperature and top_p", true, {2});
  s.first = arguments.In("the logits", true, {s.batch, s.v});
  s.embedding = arguments.In("the embedding", arguments.IsThere(3), {s.v, d});
  s.w_hq = arguments.In("w_hq", true, {tied ? s.v : n, tied ? n : s.v});
  s.b_q = arguments.In("b_q", true, {s.v});
  s.tokens = arguments.Out<int32_t>("the tokens", true, {s.steps, s.batch});
  s.logits = arguments.Out("the last logits", true, {s.batch, s.v});
  for (int64_t l = 0; l < layers; ++l) {
    SampledLayer layer{};
    const int64_t n = layer.n = n_of(l), gn = Gates(cell) * n;
    layer.d = d;
    layer.w_xh = arguments.In("w_xh", true, {d, gn});
    layer.b_h = arguments.In("b_h", true, {gn});
    layer.w_hh = arguments.In("w_hh", true, {n, gn});
    layer.b_hn = arguments.In("b_hn", cell == kGru, {n});
    layer.h0 = arguments.In("the carry", true, {s.batch, n});
    layer.c0 = arguments.In("the carry", cell == kLstm, {s.batch, n});
    layer.h = arguments.Out("the last state", true, {s.batch, n});
    layer.c = arguments.Out("the last state", cell == kLstm, {s.batch, n});
    s.layers.push_back(layer);
    d = n;
  }
  if (arguments.ok()) Sample(pool, s);
}

}  // namespace
}  // namespace rnn_lm

extern "C" XLA_FFI_Error* RnnLmSample(XLA_FFI_CallFrame* frame) { return rnn_lm::Answer(frame, rnn_lm::CallSample); }
