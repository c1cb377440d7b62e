// What goes wrong is told as a c10::Error of the right class, in plain text.
#include <veturboio/veturboio.h>

#include <filesystem>

#include "check.h"

namespace {

bool starts_with(const std::string& text, const std::string& beginning) {
  return text.compare(0, beginning.size(), beginning) == 0;
}

bool one_line(const std::string& text) { return text.find('\n') == std::string::npos; }

// A file with this header and these many bytes after it.
std::string file_with(const std::string& header, size_t bytes) {
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) {
    length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  }
  const std::string path = scratch("malformed.safetensors");
  write_file(path, length + header + std::string(bytes, 'x'));
  return path;
}

std::string refusal_of(const std::string& path) {
  const std::string text = text_of<c10::ValueError>([&] { veturboio::load(path); });
  EXPECT(starts_with(text, "read " + path + ": "));
  EXPECT(one_line(text));
  return text;
}

}  // namespace

CASE(a_missing_file) {
  const std::string path = scratch("missing.safetensors");
  const std::string expected = "open " + path + ": No such file or directory";
  EXPECT(text_of<c10::Error>([&] { veturboio::load(path); }) == expected);
  EXPECT(text_of<c10::Error>([&] { veturboio::metadata(path); }) == expected);
}

CASE(a_missing_directory_for_saving) {
  veturboio::StateDict tensors;
  tensors.insert("a", at::ones({1}));
  const std::string path = scratch("nowhere/a.safetensors");
  const std::string text = text_of<c10::Error>([&] { veturboio::save(tensors, path); });
  EXPECT(text.find(path) != std::string::npos);
  EXPECT(text.find("No such file or directory") != std::string::npos);
  EXPECT(one_line(text));
}

CASE(a_directory_in_place_of_a_file) {
  const std::string path = scratch("directory");
  std::filesystem::create_directories(path);
  const std::string text = text_of<c10::Error>([&] { veturboio::load(path); });
  EXPECT(text.find(path) != std::string::npos);
  EXPECT(text.find("Is a directory") != std::string::npos);
}

CASE(a_file_too_short_to_hold_a_header) {
  const std::string path = scratch("short.safetensors");
  write_file(path, "abc");
  refusal_of(path);
}

CASE(a_header_that_is_not_json) { refusal_of(file_with("{\"a\": oh}", 0)); }

CASE(a_tensor_of_the_wrong_size) {
  const std::string path =
      file_with("{\"weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4);
  EXPECT(refusal_of(path).find("weight") != std::string::npos);
}

CASE(a_file_that_lost_its_end) {
  veturboio::StateDict tensors;
  tensors.insert("a", at::ones({100}));
  const std::string path = scratch("cut.safetensors");
  veturboio::save(tensors, path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  refusal_of(path);
}

CASE(no_threads) {
  text_of<c10::ValueError>([] { veturboio::load(scratch("any"), {.num_thread = 0}); });
}

CASE(a_type_that_safetensors_does_not_have) {
  veturboio::StateDict tensors;
  tensors.insert("wide", at::zeros({2}, at::kComplexDouble));
  const std::string path = scratch("wide.safetensors");
  const std::string text = text_of<c10::Error>([&] { veturboio::save(tensors, path); });
  EXPECT(text.find("wide") != std::string::npos);
  EXPECT(!std::filesystem::exists(path));
}
