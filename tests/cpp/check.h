// What these tests need of a test framework.
//
// CASE(name) { ... } is one test; check.cpp holds the main function that runs them all.
#pragma once

#include <ATen/ATen.h>

#include <stdexcept>
#include <string>

struct Case {
  Case(const char* name, void (*body)());
};

#define CASE(name)                            \
  static void name();                         \
  static const Case case_##name(#name, name); \
  static void name()

#define EXPECT(condition)                                                             \
  do {                                                                                \
    if (!(condition)) {                                                               \
      throw std::runtime_error(std::string(__FILE__ ":") + std::to_string(__LINE__) + \
                               ": " #condition " does not hold");                     \
    }                                                                                 \
  } while (false)

// A path in a directory of this process alone, which goes when the process ends.
std::string scratch(const std::string& name);

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);

// Same type, same shape, same bytes: NaN equals itself, and 0.0 does not equal -0.0.
bool identical(const at::Tensor& left, const at::Tensor& right);

// The text of the `Error` that `body` throws; fails if it throws nothing or something else.
template <class Error, class Body>
std::string text_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what_without_backtrace();
  }
  throw std::runtime_error("nothing was thrown");
}
