// What save writes, load gives back, bit for bit.
#include <veturboio/veturboio.h>

#include <limits>

#include "check.h"

namespace {

veturboio::StateDict one_of_each() {
  const at::Tensor numbers = at::arange(24, at::kFloat).reshape({2, 3, 4}) - 11.5;
  veturboio::StateDict all;
  for (const at::ScalarType type :
       {at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kFloat, at::kDouble,
        at::kBFloat16, at::kBool, at::kComplexFloat, at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    all.insert(c10::toString(type), numbers.abs().to(type));
  }
  for (const at::ScalarType type : {at::kUInt16, at::kUInt32, at::kUInt64}) {
    all.insert(c10::toString(type), numbers.abs().to(at::kLong).to(type));
  }
  return all;
}

void check_same(const veturboio::StateDict& left, const veturboio::StateDict& right) {
  EXPECT(left.size() == right.size());
  for (const auto& entry : left) {
    EXPECT(right.contains(entry.key()));
    EXPECT(identical(entry.value(), right.at(entry.key())));
  }
}

veturboio::StateDict through_a_file(const veturboio::StateDict& tensors) {
  const std::string path = scratch("round_trip.safetensors");
  veturboio::save(tensors, path);
  return veturboio::load(path);
}

}  // namespace

CASE(every_type_comes_back) {
  const veturboio::StateDict tensors = one_of_each();
  check_same(tensors, through_a_file(tensors));
}

CASE(bfloat16_keeps_special_values) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  veturboio::StateDict tensors;
  const at::Tensor special = at::tensor({0.0, -0.0, infinity, -infinity, nan}, at::kDouble);
  tensors.insert("special", special.to(at::kBFloat16));
  check_same(tensors, through_a_file(tensors));
}

CASE(scalars_and_empty_tensors_come_back) {
  veturboio::StateDict tensors;
  tensors.insert("scalar", at::scalar_tensor(3.5, at::kDouble));
  tensors.insert("empty", at::empty({0, 3}, at::kHalf));
  tensors.insert("hollow", at::empty({4, 0, 2}, at::kInt));
  const veturboio::StateDict loaded = through_a_file(tensors);
  check_same(tensors, loaded);
  EXPECT(loaded.at("scalar").dim() == 0);
  EXPECT(loaded.at("empty").sizes() == at::IntArrayRef({0, 3}));
}

CASE(no_tensors_at_all_come_back) { EXPECT(through_a_file(veturboio::StateDict()).empty()); }

CASE(a_transposed_tensor_comes_back_contiguous) {
  veturboio::StateDict tensors;
  tensors.insert("transposed", at::arange(6, at::kFloat).reshape({2, 3}).t());
  const veturboio::StateDict loaded = through_a_file(tensors);
  check_same(tensors, loaded);
  EXPECT(loaded.at("transposed").is_contiguous());
  EXPECT(!tensors.at("transposed").is_contiguous());
}

CASE(names_may_hold_any_unicode) {
  veturboio::StateDict tensors;
  for (const char* name : {"", "a.b", "\"quoted\\\"", "вес", "重み", "🔥", "line\nbreak"}) {
    tensors.insert(name, at::ones({2}, at::kFloat));
  }
  check_same(tensors, through_a_file(tensors));
}

CASE(the_same_tensors_make_the_same_bytes) {
  const veturboio::StateDict tensors = one_of_each();
  const std::string first = scratch("first.safetensors");
  const std::string second = scratch("second.safetensors");
  veturboio::save(tensors, first);
  veturboio::save(veturboio::load(first), second);
  EXPECT(read_file(first) == read_file(second));
}
