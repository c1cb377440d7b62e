// Errors on their way over the border, in both directions.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>
#include <utility>

#include "rust/cxx.h"

// C++ to Rust: cxx takes the text of an exception from here. torch appends a backtrace to
// what(), which would end up in the middle of the core's message.
namespace rust::behavior {

template <typename Try, typename Fail>
static void trycatch(Try&& func, Fail&& fail) noexcept {
  try {
    func();
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  } catch (const std::exception& error) {
    fail(error.what());
  } catch (...) {
    fail("an exception without a text");
  }
}

}  // namespace rust::behavior

namespace veturboio::core {

// Throws the core's failure as the c10 error of its kind: ValueError for a malformed file or an
// argument that cannot be honoured, Error (RuntimeError in Python) for the rest.
[[noreturn]] void raise(const rust::Error& error);

// Rust to C++: runs a call into the core.
template <typename Call>
auto calling(Call&& call) -> decltype(std::forward<Call>(call)()) {
  try {
    return std::forward<Call>(call)();
  } catch (const rust::Error& error) {
    raise(error);
  }
}

}  // namespace veturboio::core
