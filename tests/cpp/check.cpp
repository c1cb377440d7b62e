#include "check.h"

#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>
#include <vector>

#include <stdlib.h>

namespace {

using Cases = std::vector<std::pair<const char*, void (*)()>>;

// A function, because cases of other files register before main and in no known order.
Cases& cases() {
  static Cases all;
  return all;
}

class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "veturboio-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
      throw std::runtime_error("create " + name + ": " + std::strerror(errno));
    }
    path = name;
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::filesystem::path path;
};

}  // namespace

Case::Case(const char* name, void (*body)()) { cases().emplace_back(name, body); }

std::string scratch(const std::string& name) {
  static const ScratchDirectory directory;
  return (directory.path / name).string();
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error("open " + path + ": it cannot be read");
  }
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  if (!file.flush()) {
    throw std::runtime_error("write " + path + ": it cannot be written");
  }
}

bool identical(const at::Tensor& left, const at::Tensor& right) {
  if (left.scalar_type() != right.scalar_type() || left.sizes() != right.sizes()) {
    return false;
  }
  const at::Tensor a = left.contiguous();
  const at::Tensor b = right.contiguous();
  return a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

int main() {
  int failures = 0;
  for (const auto& [name, body] : cases()) {
    try {
      body();
      std::cout << "ok     " << name << std::endl;
    } catch (const c10::Error& error) {
      std::cout << "FAILED " << name << ": " << error.what_without_backtrace() << std::endl;
      ++failures;
    } catch (const std::exception& error) {
      std::cout << "FAILED " << name << ": " << error.what() << std::endl;
      ++failures;
    }
  }
  return failures == 0 ? 0 : 1;
}
