// How loaded tensors, the file they came from, and the process live together.
#include <veturboio/veturboio.h>

#include <filesystem>

#include "check.h"

namespace {

std::string saved(const std::string& name) {
  veturboio::StateDict tensors;
  tensors.insert("weight", at::arange(100'000, at::kFloat));
  tensors.insert("bias", at::arange(10, at::kInt));
  veturboio::save(tensors, scratch(name));
  return scratch(name);
}

}  // namespace

CASE(writing_to_a_tensor_leaves_the_file_alone) {
  const std::string path = saved("written.safetensors");
  const std::string before = read_file(path);
  veturboio::load(path).at("weight").fill_(7);
  EXPECT(read_file(path) == before);
  EXPECT(veturboio::load(path).at("weight")[3].item<float>() == 3);
}

CASE(two_loads_do_not_see_each_other) {
  const std::string path = saved("twice.safetensors");
  const auto first = veturboio::load(path);
  const auto second = veturboio::load(path);
  first.at("weight").zero_();
  EXPECT(second.at("weight")[3].item<float>() == 3);
}

CASE(a_tensor_outlives_its_dictionary_and_its_file) {
  const std::string path = saved("outlived.safetensors");
  const at::Tensor weight = veturboio::load(path).at("weight");
  std::filesystem::remove(path);
  EXPECT(identical(weight, at::arange(100'000, at::kFloat)));
}

CASE(each_tensor_has_its_own_storage) {
  const auto tensors = veturboio::load(saved("storage.safetensors"));
  const at::Tensor bias = tensors.at("bias");
  EXPECT(bias.storage_offset() == 0);
  EXPECT(bias.storage().nbytes() == bias.nbytes());
  EXPECT(!bias.storage().is_alias_of(tensors.at("weight").storage()));
}

CASE(a_file_can_be_saved_over_while_it_is_loaded) {
  const std::string path = saved("over.safetensors");
  const auto loaded = veturboio::load(path);
  veturboio::StateDict doubled;
  doubled.insert("weight", loaded.at("weight") * 2);
  veturboio::save(doubled, path);
  EXPECT(identical(loaded.at("weight"), at::arange(100'000, at::kFloat)));
  EXPECT(identical(veturboio::load(path).at("weight"), at::arange(100'000, at::kFloat) * 2));
  veturboio::save(loaded, path);
  EXPECT(identical(veturboio::load(path).at("weight"), at::arange(100'000, at::kFloat)));
}

CASE(no_python_is_in_the_process) {
  veturboio::load(saved("python.safetensors"));
  const std::string maps = read_file("/proc/self/maps");
  EXPECT(maps.find("libveturboio") != std::string::npos);
  EXPECT(maps.find("libpython") == std::string::npos);
  EXPECT(maps.find("libtorch_python") == std::string::npos);
}
