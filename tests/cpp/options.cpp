// What LoadOptions and SaveOptions do.
#include <veturboio/veturboio.h>

#include <fstream>
#include <string>

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

CASE(a_file_has_an_address_too) {
  const std::string path = scratch("addressed.safetensors");
  veturboio::save(weights(), "file://" + path);
  EXPECT(identical(veturboio::load(path).at("weight"), weights().at("weight")));
  EXPECT(veturboio::load("file://" + path).size() == 2);
}

CASE(a_store_that_does_not_answer_is_named_and_its_secret_is_not) {
  c10::Dict<std::string, std::string> options;
  options.insert("aws_endpoint_url", "http://127.0.0.1:1");  // nobody listens there
  options.insert("aws_access_key_id", "key");
  options.insert("aws_secret_access_key", "a-secret");
  options.insert("retry_timeout", "0");
  const std::string address = "s3://bucket/model.safetensors";
  const auto check = [&](const std::string& text) {
    EXPECT(text.find(address) != std::string::npos);
    EXPECT(text.find("a-secret") == std::string::npos);
  };
  check(text_of<c10::Error>([&] { veturboio::load(address, {.storage_options = options}); }));
  check(text_of<c10::Error>(
      [&] { veturboio::save(weights(), address, {.storage_options = options}); }));
}

CASE(numbers_are_converted_on_their_way) {
  const std::string path = scratch("converted.safetensors");
  veturboio::save(weights(), path);
  const auto loaded = veturboio::load(path, {.dtype = at::kDouble});
  EXPECT(identical(loaded.at("weight"), weights().at("weight").to(at::kDouble)));
  text_of<c10::ValueError>([&] { veturboio::load(path, {.dtype = at::kInt}); });
}

CASE(devices_are_named_for_all_tensors_or_it_is_an_error) {
  const std::string path = scratch("devices.safetensors");
  veturboio::save(weights(), path);
  c10::Dict<std::string, c10::Device> devices;
  devices.insert("weight", c10::Device(c10::kCPU));
  const std::string text =
      text_of<c10::ValueError>([&] { veturboio::load(path, {.devices = devices}); });
  EXPECT(text.find("\"bias\": map_location names no device for it") != std::string::npos);
  devices.insert("", c10::Device(c10::kCPU));
  EXPECT(veturboio::load(path, {.devices = devices}).size() == 2);
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
  const auto stored = veturboio::load(path, {.restore_aliases = false});
  EXPECT(stored.size() == 1 && stored.contains("head"));
  EXPECT(veturboio::metadata(path).at("format") == "pt");
  EXPECT(veturboio::explain(path, {.names = {{"embedding"}}}).find("32 bytes") !=
         std::string::npos);
  text_of<c10::ValueError>(
      [&] { veturboio::explain(path, {.names = {{"embedding"}}, .restore_aliases = false}); });

  veturboio::save(tensors, path,
                  {.force_save_shared_tensor = true, .force_clone_shared_tensor = true});
  const auto cloned = veturboio::load(path);
  EXPECT(identical(cloned.at("head"), tied) && identical(cloned.at("embedding"), tied));
  EXPECT(cloned.at("head").data_ptr() != cloned.at("embedding").data_ptr());
  EXPECT(tensors.size() == 2);
}

CASE(a_part_can_be_loaded) {
  const std::string path = scratch("part.safetensors");
  veturboio::save(weights(), path);
  const auto named = veturboio::load(path, {.names = {{"bias"}}});
  EXPECT(named.size() == 1 && identical(named.at("bias"), weights().at("bias")));

  c10::Dict<std::string, std::vector<int64_t>> slices;
  slices.insert("weight", std::vector<int64_t>{1, -3, -1, 0, 1, 3});
  const auto sliced = veturboio::load(path, {.slices = slices});
  const at::Tensor part = weights().at("weight").slice(1, 1, 3).slice(0, 1, 3);
  EXPECT(sliced.size() == 2 && identical(sliced.at("weight"), part.contiguous()));

  slices.insert_or_assign("weight", std::vector<int64_t>{0, 1});
  text_of<c10::ValueError>([&] { veturboio::load(path, {.slices = slices}); });
  text_of<c10::ValueError>([&] { veturboio::load(path, {.names = {{"nobody"}}}); });
}

CASE(every_way_brings_the_same_and_is_explained) {
  const std::string path = scratch("ways.safetensors");
  veturboio::save(weights(), path);
  for (const std::string way : {"auto", "map", "read", "direct", "uring"}) {
    const at::Tensor progress = at::zeros({2}, at::kLong);
    const auto loaded = veturboio::load(path, {.way = way, .progress = progress});
    EXPECT(identical(loaded.at("weight"), weights().at("weight")));
    EXPECT(progress[0].item<int64_t>() == progress[1].item<int64_t>());
    EXPECT(progress[0].item<int64_t>() > 0);
  }
  EXPECT(veturboio::explain(path, {.way = "direct"}).find("direct was asked for") !=
         std::string::npos);
  text_of<c10::ValueError>([&] { veturboio::load(path, {.way = "fast"}); });
}

CASE(what_need_not_be_durable_is_whole_all_the_same) {
  const std::string durable = scratch("durable.safetensors");
  const std::string fast = scratch("fast.safetensors");
  veturboio::save(weights(), durable);
  veturboio::save(weights(), fast, {.durable = false});
  EXPECT(read_file(durable) == read_file(fast));
}

CASE(what_is_of_an_unknown_class_is_left_out_on_request) {
  // PyTorch's old format: a tensor `w` of two floats, and a fraction, whose class is unknown.
  static constexpr char kFile[] =
      "\x80\x02\x8a\x0al\xfc\x9c"
      "F\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
      "\x80\x02}X\x0d\0\0\0little_endian\x88s."
      "\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
      "ctorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpuK\x02NtQK\0K\x02\x85K\x01\x85\x89}tR"
      "X\x01\0\0\0xcfractions\nFraction\nK\x01K\x02\x86Ru."
      "\x80\x02]X\x01\0\0\0ka."
      "\x02\0\0\0\0\0\0\0\0\0\x80?\0\0\0@";
  const std::string path = scratch("fraction.pt");
  std::ofstream(path, std::ios::binary).write(kFile, sizeof(kFile) - 1);
  const std::string text = text_of<c10::ValueError>([&] { veturboio::load(path); });
  EXPECT(text.find("fractions.Fraction") != std::string::npos);
  const auto loaded = veturboio::load(path, {.skip_unknown = true});
  EXPECT(loaded.size() == 1);
  EXPECT(identical(loaded.at("w"), at::arange(1, 3, at::kFloat)));
  EXPECT(veturboio::explain(path, {.skip_unknown = true}).find("8 bytes") != std::string::npos);
}
