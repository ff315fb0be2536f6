// What XLA gives to a function, checked, and its threads. By XLA's C interface: its C++ one takes as long to compile as
// the kernels do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "xla/ffi/api/c_api.h"

namespace rnn_lm {

// The version of the interface in JAX 0.10: what it has is all that is used here. JAX takes libraries of older
// versions, not of newer ones, so one that is compiled beside a newer JAX runs with all that are supported.
constexpr int kMajorVersion = 0, kMinorVersion = 3;

// The threads of a call, as `RunPhases` takes them.
class ThreadPool {
 public:
  explicit ThreadPool(const XLA_FFI_CallFrame* frame) : api_(frame->api), context_(frame->ctx) {}

  int64_t num_threads() const {
    int64_t count = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args{};
    args.struct_size = XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE;
    args.ctx = context_;
    args.num_threads = &count;
    return Failed(api_->XLA_FFI_ThreadPool_NumThreads(&args)) ? 1 : count;
  }

  template <typename F>
  void Schedule(F work) const {
    auto own = std::make_unique<F>(std::move(work));
    XLA_FFI_ThreadPool_Schedule_Args args{};
    args.struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE;
    args.ctx = context_;
    args.task = [](void* data) { (*std::unique_ptr<F>(static_cast<F*>(data)))(); };
    args.data = own.get();
    if (!Failed(api_->XLA_FFI_ThreadPool_Schedule(&args))) own.release();  // else this thread does everything
  }

 private:
  bool Failed(XLA_FFI_Error* error) const {
    if (!error) return false;
    XLA_FFI_Error_Destroy_Args args{};
    args.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE;
    args.error = error;
    api_->XLA_FFI_Error_Destroy(&args);
    return true;
  }

  const XLA_FFI_Api* api_;
  decltype(XLA_FFI_CallFrame::ctx) context_;  // its type has another name in JAX 0.12
};

// The arrays of a call, by position, and its attributes. Python has checked all shapes before; what it overlooked must
// not become a read or a write past an array's end.
class Arguments {
 public:
  explicit Arguments(const XLA_FFI_CallFrame* frame) : frame_(frame) {}

  int64_t count() const { return frame_->args.size; }

  // False, and an error, unless a call has so many of both.
  bool Have(int64_t arguments, int64_t results) {
    const bool have = frame_->args.size == arguments && frame_->rets.size == results;
    if (!have) wrong_ = "the number of arrays";
    return have;
  }

  // The data of the next argument or result; null, and no elements, where it is not needed.
  template <typename T = float>
  const T* In(const char* what, bool needed, std::initializer_list<int64_t> shape) {
    return Checked<T>(Argument(next_in_++), what, needed, shape);
  }
  template <typename T = float>
  T* Out(const char* what, bool needed, std::initializer_list<int64_t> shape) {
    return Checked<T>(Result(next_out_++), what, needed, shape);
  }
  bool IsThere(int64_t i) const { return Elements(Argument(i)) > 0; }
  bool IsMade(int64_t i) const { return Elements(Result(i)) > 0; }
  std::vector<int64_t> Shape(int64_t i) const { return {Argument(i).dims, Argument(i).dims + Argument(i).rank}; }

  // A boolean, or a whole number from 0 to `most`.
  int64_t Attribute(const std::string& name, int64_t most = INT64_MAX) {
    const XLA_FFI_Attrs& attributes = frame_->attrs;
    for (int64_t i = 0; i < attributes.size; ++i) {
      if (name != std::string(attributes.names[i]->ptr, attributes.names[i]->len)) continue;
      const auto* scalar = static_cast<const XLA_FFI_Scalar*>(attributes.attrs[i]);
      if (attributes.types[i] != XLA_FFI_AttrType_SCALAR) continue;
      if (scalar->dtype == XLA_FFI_DataType_PRED) return *static_cast<const bool*>(scalar->value);
      if (scalar->dtype != XLA_FFI_DataType_S64) continue;
      const int64_t value = *static_cast<const int64_t*>(scalar->value);
      if (0 <= value && value <= most) return value;
    }
    wrong_ = name;
    return 0;
  }

  // Whether everything was as it has to be.
  bool ok() const { return wrong_.empty(); }
  std::string error() const { return "rnn_lm: " + wrong_ + " does not go together with the other arguments"; }

 private:
  const XLA_FFI_Buffer& Argument(int64_t i) const { return *static_cast<XLA_FFI_Buffer*>(frame_->args.args[i]); }
  const XLA_FFI_Buffer& Result(int64_t i) const { return *static_cast<XLA_FFI_Buffer*>(frame_->rets.rets[i]); }

  static int64_t Elements(const XLA_FFI_Buffer& buffer) {
    int64_t count = 1;
    for (int64_t i = 0; i < buffer.rank; ++i) count *= buffer.dims[i];
    return count;
  }

  template <typename T>
  T* Checked(const XLA_FFI_Buffer& buffer, const char* what, bool needed, std::initializer_list<int64_t> shape) {
    constexpr auto type = std::is_same_v<T, bool>      ? XLA_FFI_DataType_PRED
                          : std::is_same_v<T, int32_t> ? XLA_FFI_DataType_S32
                                                       : XLA_FFI_DataType_F32;
    const bool is_shape = std::equal(buffer.dims, buffer.dims + buffer.rank, shape.begin(), shape.end());
    const bool fits = needed ? buffer.dtype == type && is_shape : Elements(buffer) == 0;
    if (!fits && ok()) wrong_ = std::string("the dimensions or the dtype of ") + what;
    return needed ? static_cast<T*>(buffer.data) : nullptr;
  }

  const XLA_FFI_CallFrame* frame_;
  int64_t next_in_ = 0, next_out_ = 0;
  std::string wrong_;
};

// Runs `function(arguments, pool)` for XLA, which first asks for the version of its interface.
template <typename Function>
XLA_FFI_Error* Answer(XLA_FFI_CallFrame* frame, Function function) noexcept {
  const auto* extension = frame->extension_start;
  if (extension && extension->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata* metadata = reinterpret_cast<const XLA_FFI_Metadata_Extension*>(extension)->metadata;
    metadata->api_version.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE;
    metadata->api_version.extension_start = nullptr;
    metadata->api_version.major_version = kMajorVersion;
    metadata->api_version.minor_version = kMinorVersion;
    metadata->traits = 0;
    metadata->state_type_id = XLA_FFI_UNKNOWN_TYPE_ID;
    return nullptr;
  }
  Arguments arguments(frame);
  function(arguments, ThreadPool(frame));
  if (arguments.ok()) return nullptr;
  const std::string message = arguments.error();
  XLA_FFI_Error_Create_Args args{};
  args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  args.message = message.c_str();
  args.errc = XLA_FFI_Error_Code_INVALID_ARGUMENT;
  return frame->api->XLA_FFI_Error_Create(&args);
}

}  // namespace rnn_lm
