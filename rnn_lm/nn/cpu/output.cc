// The function that XLA calls for the output layer and its loss.

#include "output.h"

#include "arguments.h"

namespace rnn_lm {
namespace {

void CallOutput(Arguments& arguments, ThreadPool pool) {
  if (!arguments.Have(5, 4)) return;
  const auto states = arguments.Shape(0), biases = arguments.Shape(2);
  Output o{};
  const bool tied = o.tied = arguments.Attribute("tied");
  o.rows = states.size() == 2 ? states[0] : 0, o.n = states.size() == 2 ? states[1] : 0;
  o.v = biases.size() == 1 ? biases[0] : 0;
  o.h = arguments.In("the states", true, {o.rows, o.n});
  o.w = arguments.In("w_hq", true, {tied ? o.v : o.n, tied ? o.n : o.v});
  o.b = arguments.In("b_q", true, {o.v});
  o.labels = arguments.In<int32_t>("the labels", true, {o.rows});
  o.weights = arguments.In("the weights", arguments.IsThere(4), {o.rows});
  o.nll = arguments.Out("the nats", true, {o.rows});
  o.d_w = arguments.Out("w_hq's gradient", o.weights && arguments.IsMade(1), {tied ? o.v : o.n, tied ? o.n : o.v});
  o.d_b = arguments.Out("b_q's gradient", o.weights && arguments.IsMade(2), {o.v});
  o.d_h = arguments.Out("the states' adjoints", o.weights && arguments.IsMade(3), {o.rows, o.n});
  if (arguments.ok()) ComputeOutput(pool, o);
}

}  // namespace
}  // namespace rnn_lm

extern "C" XLA_FFI_Error* RnnLmOutput(XLA_FFI_CallFrame* frame) { return rnn_lm::Answer(frame, rnn_lm::CallOutput); }
