// The arrays that XLA gives to a function, checked.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace rnn_lm {

// The arrays of a call, by position. Python has checked all shapes before; what it overlooked must not become a read or
// a write past an array's end.
class Arguments {
 public:
  Arguments(ffi::RemainingArgs in, ffi::RemainingRets out) : in_(in), out_(out) {}

  // The data of the next argument or result; null, and no elements, where it is not needed.
  template <typename T = float>
  const T* In(const char* what, bool needed, std::initializer_list<int64_t> shape) {
    const ffi::AnyBuffer buffer = *in_.get<ffi::AnyBuffer>(next_in_++);
    constexpr auto type = std::is_same_v<T, bool> ? ffi::PRED : std::is_same_v<T, int32_t> ? ffi::S32 : ffi::F32;
    return static_cast<const T*>(Checked(buffer, what, buffer.element_type() == type, needed, shape));
  }
  float* Out(const char* what, bool needed, std::initializer_list<int64_t> shape) {
    const ffi::AnyBuffer buffer = **out_.get<ffi::AnyBuffer>(next_out_++);
    return static_cast<float*>(Checked(buffer, what, buffer.element_type() == ffi::F32, needed, shape));
  }
  bool IsThere(size_t i) const { return in_.get<ffi::AnyBuffer>(i)->element_count() > 0; }
  bool IsMade(size_t i) const { return (*out_.get<ffi::AnyBuffer>(i))->element_count() > 0; }
  ffi::AnyBuffer::Dimensions Shape(size_t i) const { return in_.get<ffi::AnyBuffer>(i)->dimensions(); }

  ffi::Error error() const {
    if (wrong_.empty()) return ffi::Error::Success();
    return ffi::Error::InvalidArgument("rnn_lm: the dimensions or the dtype of " + wrong_ +
                                       " do not go together with the others");
  }

 private:
  void* Checked(const ffi::AnyBuffer& buffer, const char* what, bool is_type, bool needed,
                std::initializer_list<int64_t> shape) {
    const auto given = buffer.dimensions();
    const bool fits = needed ? is_type && std::equal(given.begin(), given.end(), shape.begin(), shape.end())
                             : buffer.element_count() == 0;
    if (!fits && wrong_.empty()) wrong_ = what;
    return needed ? buffer.untyped_data() : nullptr;
  }

  ffi::RemainingArgs in_;
  ffi::RemainingRets out_;
  size_t next_in_ = 0, next_out_ = 0;
  std::string wrong_;
};

}  // namespace rnn_lm
