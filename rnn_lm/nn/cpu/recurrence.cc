// The functions that XLA calls for a recurrent layer.

#include "arguments.h"
#include "layer.h"

namespace rnn_lm {
namespace {

// The first eleven arguments of both directions.
Layer LayerOf(Arguments& arguments) {
  Layer layer{};
  const int64_t cell = layer.cell = arguments.Attribute("cell", kLstm);
  const int64_t inputs_are = layer.inputs_are = arguments.Attribute("inputs", kReady);
  layer.reverse = arguments.Attribute("reverse");
  const bool lstm = cell == kLstm, gru = cell == kGru, ready = inputs_are == kReady;
  const auto inputs = arguments.Shape(0), weights = arguments.Shape(1), carry = arguments.Shape(5);
  const int64_t steps = layer.steps = inputs.size() > 1 ? inputs[0] : 0;
  const int64_t batch = layer.batch = inputs.size() > 1 ? inputs[1] : 0;
  const int64_t n = layer.n = carry.size() == 2 ? carry[1] : 0, gn = layer.gn = Gates(cell) * n;
  const int64_t d = layer.d = !ready && weights.size() == 2 ? weights[0] : 0;
  if (inputs_are == kIds) {
    layer.ids = arguments.In<int32_t>("the ids", true, {steps, batch});
  } else {
    layer.x = arguments.In("the inputs", true, {steps, batch, ready ? gn : d});
  }
  layer.w_xh = arguments.In("w_xh", !ready, {d, gn});
  layer.b_h = arguments.In("b_h", !ready, {gn});
  layer.w_hh = arguments.In("w_hh", true, {n, gn});
  layer.b_hn = arguments.In("b_hn", gru, {n});
  layer.h0 = arguments.In("the carry", true, {batch, n});
  layer.c0 = arguments.In("the carry", lstm, {batch, n});
  const bool resets = arguments.IsThere(10);
  layer.initial_h = arguments.In("the initial carry", resets, {batch, n});
  layer.initial_c = arguments.In("the initial carry", resets && lstm, {batch, n});
  layer.given_lengths = arguments.In<int32_t>("the lengths", arguments.IsThere(9), {batch});
  layer.resets = arguments.In<bool>("the resets", resets, {steps, batch});
  return layer;
}

void CallForward(Arguments& arguments, ThreadPool pool) {
  if (!arguments.Have(11, 5)) return;
  Layer layer = LayerOf(arguments);
  const int64_t cell = layer.cell, steps = layer.steps, batch = layer.batch, n = layer.n;
  States out{};
  out.hs = arguments.Out("the states", true, {steps, batch, n});
  out.cs = arguments.Out("the states", cell == kLstm, {steps, batch, n});
  out.saved = arguments.Out("what is saved", arguments.IsMade(2), {steps, batch, Saved(cell) * n});
  out.h_last = arguments.Out("the last state", true, {batch, n});
  out.c_last = arguments.Out("the last state", cell == kLstm, {batch, n});
  if (!arguments.ok()) return;
  layer.Sort();
  Forward(pool, layer, out);
}

void CallBackward(Arguments& arguments, ThreadPool pool) {
  if (!arguments.Have(19, 9)) return;
  Layer layer = LayerOf(arguments);
  const int64_t cell = layer.cell, steps = layer.steps, batch = layer.batch, n = layer.n, d = layer.d, gn = layer.gn;
  const bool lstm = cell == kLstm, gru = cell == kGru, ready = layer.inputs_are == kReady, resets = layer.resets;
  Adjoints a{};
  a.passed = arguments.In("the truncation", arguments.IsThere(11), {steps});
  a.hs = arguments.In("the states", true, {steps, batch, n});
  a.cs = arguments.In("the states", lstm, {steps, batch, n});
  a.saved = arguments.In("what is saved", Saved(cell) > 0, {steps, batch, Saved(cell) * n});
  a.d_hs = arguments.In("the states' adjoints", arguments.IsThere(15), {steps, batch, n});
  a.d_cs = arguments.In("the states' adjoints", arguments.IsThere(16), {steps, batch, n});
  a.d_h_last = arguments.In("the last state's adjoint", true, {batch, n});
  a.d_c_last = arguments.In("the last state's adjoint", lstm, {batch, n});
  a.d_x = arguments.Out("the inputs' adjoints", ready || arguments.IsMade(0), {steps, batch, ready ? gn : d});
  a.d_w_xh = arguments.Out("w_xh's gradient", !ready, {d, gn});
  a.d_b_h = arguments.Out("b_h's gradient", !ready, {gn});
  a.d_w_hh = arguments.Out("w_hh's gradient", true, {n, gn});
  a.d_b_hn = arguments.Out("b_hn's gradient", gru, {n});
  a.d_h0 = arguments.Out("the carry's adjoint", true, {batch, n});
  a.d_c0 = arguments.Out("the carry's adjoint", lstm, {batch, n});
  a.d_initial_h = arguments.Out("the initial carry's adjoint", resets, {batch, n});
  a.d_initial_c = arguments.Out("the initial carry's adjoint", resets && lstm, {batch, n});
  if (!arguments.ok()) return;
  layer.Sort();
  Backward(pool, layer, a);
}

}  // namespace
}  // namespace rnn_lm

extern "C" {
XLA_FFI_Error* RnnLmForward(XLA_FFI_CallFrame* frame) { return rnn_lm::Answer(frame, rnn_lm::CallForward); }
XLA_FFI_Error* RnnLmBackward(XLA_FFI_CallFrame* frame) { return rnn_lm::Answer(frame, rnn_lm::CallBackward); }
}
