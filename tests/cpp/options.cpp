// What LoadOptions and SaveOptions do.
#include <veturboio/veturboio.h>

#include "check.h"

namespace {

veturboio::StateDict weights() {
  veturboio::StateDict tensors;
  tensors.insert("weight", at::arange(12, at::kFloat).reshape({3, 4}));
  tensors.insert("bias", at::arange(3, at::kBFloat16));
  return tensors;
}

}  // namespace

CASE(metadata_comes_back) {
  const std::string path = scratch("metadata.safetensors");
  veturboio::Metadata notes;
  notes.insert("format", "pt");
  notes.insert("author", "Ада");
  veturboio::save(weights(), path, {.metadata = notes});
  const veturboio::Metadata read = veturboio::metadata(path);
  EXPECT(read.size() == 2);
  EXPECT(read.at("format") == "pt");
  EXPECT(read.at("author") == "Ада");
  EXPECT(veturboio::load(path).size() == 2);
}

CASE(a_file_without_metadata_has_none) {
  const std::string path = scratch("plain.safetensors");
  veturboio::save(weights(), path);
  EXPECT(veturboio::metadata(path).empty());
}

CASE(meta_gives_shapes_and_types_alone) {
  const std::string path = scratch("meta.safetensors");
  veturboio::save(weights(), path);
  const auto loaded = veturboio::load(path, {.map_location = c10::Device(c10::kMeta)});
  EXPECT(loaded.at("weight").is_meta());
  EXPECT(loaded.at("weight").sizes() == at::IntArrayRef({3, 4}));
  EXPECT(loaded.at("bias").scalar_type() == at::kBFloat16);
}

CASE(the_cpu_can_be_named) {
  const std::string path = scratch("cpu.safetensors");
  veturboio::save(weights(), path);
  const auto loaded = veturboio::load(path, {.map_location = c10::Device(c10::kCPU)});
  EXPECT(loaded.at("weight").is_cpu());
  EXPECT(identical(loaded.at("weight"), weights().at("weight")));
}

CASE(one_thread_is_enough) {
  const std::string many = scratch("many.safetensors");
  const std::string one = scratch("one.safetensors");
  veturboio::save(weights(), many);
  veturboio::save(veturboio::load(many, {.num_thread = 1}), one, {.num_thread = 1});
  EXPECT(read_file(many) == read_file(one));
}

CASE(progress_ends_where_all_bytes_are_written) {
  const at::Tensor progress = at::zeros({2}, at::kLong);
  veturboio::save(weights(), scratch("progress.safetensors"), {.progress = progress});
  const int64_t done = progress[0].item<int64_t>();
  EXPECT(done > 0);
  EXPECT(done == progress[1].item<int64_t>());
}

CASE(a_non_contiguous_tensor_can_be_refused) {
  veturboio::StateDict tensors;
  tensors.insert("slanted", at::ones({2, 3}).t());
  const std::string path = scratch("refused.safetensors");
  text_of<c10::ValueError>([&] { veturboio::save(tensors, path, {.force_contiguous = false}); });
  text_of<c10::Error>([&] { veturboio::load(path); });
}

CASE(shared_tensors_are_refused_noted_or_cloned) {
  veturboio::StateDict tensors;
  const at::Tensor tied = at::arange(8, at::kFloat);
  tensors.insert("head", tied);
  tensors.insert("embedding", tied);
  const std::string path = scratch("shared.safetensors");
  text_of<c10::ValueError>([&] { veturboio::save(tensors, path); });
  text_of<c10::ValueError>(
      [&] { veturboio::save(tensors, path, {.force_clone_shared_tensor = true}); });

  veturboio::save(tensors, path, {.force_save_shared_tensor = true});
  const auto noted = veturboio::load(path);
  EXPECT(identical(noted.at("head"), tied) && identical(noted.at("embedding"), tied));
  EXPECT(noted.at("head").data_ptr() == noted.at("embedding").data_ptr());

  veturboio::save(tensors, path,
                  {.force_save_shared_tensor = true, .force_clone_shared_tensor = true});
  const auto cloned = veturboio::load(path);
  EXPECT(identical(cloned.at("head"), tied) && identical(cloned.at("embedding"), tied));
  EXPECT(cloned.at("head").data_ptr() != cloned.at("embedding").data_ptr());
  EXPECT(tensors.size() == 2);
}
