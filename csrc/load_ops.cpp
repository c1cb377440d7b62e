// The operators that load.

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <optional>
#include <string>
#include <tuple>

#include "veturboio/csrc/error.h"
#include "veturboio/csrc/ops.h"
#include "veturboio/csrc/state_dict.h"
#include "veturboio/csrc/targets.h"
#include "veturboio/csrc/tensor.h"
#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {
namespace {

constexpr const char* kMetaForSome = "the meta device is for all tensors or none";

// A load says of a helper what memory it is for.
void check_helper(const std::string& file, const MaybeHelper& helper, bool use_pinmem) {
  if (helper.has_value()) {
    calling([&] { agree((*helper)->buffers(), path(file), use_pinmem); });
  }
}

// Throws if `is_wrong`, in the words of every other load that is refused.
void refuse_if(bool is_wrong, const std::string& file, const char* reason) {
  if (is_wrong) {
    calling([&] { refuse_load(path(file), reason); });
  }
}

// The load has succeeded: its helper is for this kind of memory from now on.
void decide(const MaybeHelper& helper, bool use_pinmem) {
  if (helper.has_value()) {
    (*helper)->buffers().decide_pinned(use_pinmem);
  }
}

// The tensors of a load where they are wanted; they take its region.
std::vector<at::Tensor> tensors_of(const Wanted& wanted, Loaded& loaded, const Targets& targets) {
  if (wanted.is_meta()) {
    return make_meta_tensors(loaded.tensors, loaded.storages);
  }
  return std::move(
      *make_tensors(loaded.tensors, loaded.storages, std::move(loaded.region), targets));
}

TensorDict named(const Loaded& loaded, const std::vector<at::Tensor>& tensors) {
  TensorDict state_dict;
  state_dict.reserve(loaded.names.size());
  for (const Name& name : loaded.names) {
    state_dict.insert(std::string(name.name), tensors.at(name.tensor));
  }
  return state_dict;
}

// Copies what the core has left, elements of one dtype to elements of the same.
void copy_left(Filled& filled, const StateDict& tensors) {
  const at::NoGradGuard no_grad;
  const Targets none(/*use_pinmem=*/false, /*one_allocation=*/false);
  Loaded& loaded = filled.loaded;
  const auto sources =
      make_tensors(loaded.tensors, loaded.storages, std::move(loaded.region), none);
  for (std::size_t index = 0; index < filled.left.size(); ++index) {
    const auto& [name, tensor] = tensors.at(filled.left.at(index));
    at::Tensor target = tensor.view({-1});
    at::Tensor source = sources->at(loaded.names.at(index).tensor).reshape({-1});
    TORCH_INTERNAL_ASSERT(source.scalar_type() == target.scalar_type() &&
                          name == std::string(loaded.names.at(index).name));
    target = target.narrow(0, 0, source.numel());
    // torch does not copy every type of one byte.
    if (source.element_size() == 1 && !target.is_neg()) {
      source = source.view(at::kByte);
      target = target.view(at::kByte);
    }
    target.copy_(source);
  }
}

// Fills the caller's tensors: the core those in memory that it can write to, torch what it leaves.
void fill_tensors(const std::string& file, const Wanted& wanted, const TensorDict& targets,
                  bool use_pinmem, const IOHelper& helper, std::int64_t* progress) {
  StateDict tensors;
  for (const auto& entry : targets) {
    const at::Tensor tensor = entry.value();
    tensors.push(entry.key(), &tensor);
  }
  const LoadRequest request = wanted.request(/*structured=*/false);
  Targets devices(use_pinmem, /*one_allocation=*/false);
  devices.fill(tensors);
  Filled filled = calling(
      [&] { return fill(path(file), request, tensors, devices, helper.buffers(), progress); });
  if (!filled.left.empty()) {
    copy_left(filled, tensors);
  }
}

// A load that keeps what passes through host memory in the caller's helper.
Loaded load_through(const std::string& file, const LoadRequest& request, const Targets& targets,
                    bool use_pinmem, const MaybeHelper& helper,
                    const std::optional<at::Tensor>& progress) {
  const HelperPtr lender = helper_or_own(helper);
  Loaded loaded = calling(
      [&] { return load(path(file), request, targets, lender->buffers(), counters(progress)); });
  decide(helper, use_pinmem);
  return loaded;
}

// Bytes of the core as a tensor, which keeps them.
at::Tensor as_tensor(rust::Vec<std::uint8_t> bytes) {
  auto* const held = new rust::Vec<std::uint8_t>(std::move(bytes));
  const auto len = static_cast<std::int64_t>(held->size());
  return at::from_blob(held->data(), {len}, [held](void*) { delete held; }, at::kByte);
}

// Whether the memory of a contiguous tensor has all its elements: a storage may have been resized.
bool is_backed(const at::Tensor& tensor) {
  const c10::SymInt end = (tensor.sym_storage_offset() + tensor.sym_numel()) * tensor.itemsize();
  return tensor.has_storage() && tensor.storage().sym_nbytes() >= end;
}

}  // namespace

std::int64_t* counters(const std::optional<at::Tensor>& progress) {
  if (!progress.has_value()) {
    return nullptr;
  }
  TORCH_CHECK_VALUE(progress->is_cpu() && progress->scalar_type() == at::kLong &&
                        progress->is_contiguous() && progress->numel() == 2,
                    "progress must be an int64[2] tensor on the CPU");
  TORCH_CHECK_VALUE(is_backed(*progress), "progress reaches past its storage");
  return progress->mutable_data_ptr<std::int64_t>();
}

TensorDict load_op(const std::string& file, const std::optional<at::Device>& map_location,
                   std::int64_t num_thread, bool use_direct_io,
                   const std::optional<TensorDict>& state_dict, bool use_pinmem,
                   const MaybeHelper& helper, std::optional<std::string> way,
                   std::optional<std::vector<std::string>> names,
                   std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices,
                   const std::optional<at::Tensor>& progress, std::optional<DeviceDict> devices,
                   std::optional<at::ScalarType> dtype, bool one_allocation,
                   std::optional<StringDict> storage_options, std::optional<std::string> cache_dir,
                   bool restore_aliases, bool skip_unknown) {
  check_helper(file, helper, use_pinmem);
  if (state_dict.has_value()) {
    refuse_if(names.has_value() || slices.has_value() || dtype.has_value(), file,
              "state_dict cannot be combined with names, slices or dtype");
    const Wanted wanted{
        .num_thread = num_thread,
        .use_direct_io = use_direct_io,
        .way = std::move(way),
        .store = {std::move(storage_options), std::move(cache_dir)},
        .restore_aliases = restore_aliases,
        .skip_unknown = skip_unknown,
    };
    const HelperPtr lender = helper_or_own(helper);
    fill_tensors(file, wanted, *state_dict, use_pinmem, *lender, counters(progress));
    decide(helper, use_pinmem);
    return *state_dict;
  }
  const Wanted wanted{
      .num_thread = num_thread,
      .use_direct_io = use_direct_io,
      .way = std::move(way),
      .names = std::move(names),
      .slices = std::move(slices),
      .map_location = map_location,
      .devices = std::move(devices),
      .dtype = dtype,
      .store = {std::move(storage_options), std::move(cache_dir)},
      .restore_aliases = restore_aliases,
      .skip_unknown = skip_unknown,
  };
  refuse_if(wanted.is_meta_for_some(), file, kMetaForSome);
  const LoadRequest request = wanted.request(/*structured=*/false);
  const Targets targets(use_pinmem, one_allocation);
  Loaded loaded = load_through(file, request, targets, use_pinmem, helper, progress);
  return named(loaded, tensors_of(wanted, loaded, targets));
}

std::tuple<TensorDict, std::vector<at::Tensor>, std::string, std::optional<at::Tensor>>
load_values_op(const std::string& file, const std::optional<at::Device>& map_location,
               std::int64_t num_thread, bool use_direct_io, bool use_pinmem,
               const MaybeHelper& helper, std::optional<std::string> way,
               std::optional<std::vector<std::string>> names,
               std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices,
               const std::optional<at::Tensor>& progress, std::optional<DeviceDict> devices,
               std::optional<at::ScalarType> dtype, bool one_allocation,
               std::optional<StringDict> storage_options, std::optional<std::string> cache_dir,
               std::optional<std::string> version, bool restore_aliases, bool skip_unknown) {
  check_helper(file, helper, use_pinmem);
  const Wanted wanted{
      .num_thread = num_thread,
      .use_direct_io = use_direct_io,
      .way = std::move(way),
      .names = std::move(names),
      .slices = std::move(slices),
      .map_location = map_location,
      .devices = std::move(devices),
      .dtype = dtype,
      .store = {std::move(storage_options), std::move(cache_dir)},
      .version = std::move(version),
      .restore_aliases = restore_aliases,
      .skip_unknown = skip_unknown,
  };
  refuse_if(wanted.is_meta_for_some(), file, kMetaForSome);
  const LoadRequest request = wanted.request(/*structured=*/true);
  const Targets targets(use_pinmem, one_allocation);
  Loaded loaded = load_through(file, request, targets, use_pinmem, helper, progress);
  std::vector<at::Tensor> tensors = tensors_of(wanted, loaded, targets);
  TensorDict state_dict = named(loaded, tensors);
  if (loaded.structure.empty()) {
    return {std::move(state_dict), std::vector<at::Tensor>(), std::string(), std::nullopt};
  }
  return {std::move(state_dict), std::move(tensors), std::string(loaded.structure),
          as_tensor(std::move(loaded.values))};
}

std::tuple<std::vector<std::string>, std::string> names_op(
    const std::string& file, std::int64_t num_thread, std::optional<std::vector<std::string>> names,
    std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices,
    std::optional<StringDict> storage_options, std::optional<std::string> cache_dir,
    bool restore_aliases, bool skip_unknown) {
  const Wanted wanted{
      .num_thread = num_thread,
      .use_direct_io = false,
      .names = std::move(names),
      .slices = std::move(slices),
      .map_location = at::Device(at::kMeta),
      .store = {std::move(storage_options), std::move(cache_dir)},
      .restore_aliases = restore_aliases,
      .skip_unknown = skip_unknown,
  };
  const LoadRequest request = wanted.request(/*structured=*/false);
  const Targets none(/*use_pinmem=*/false, /*one_allocation=*/false);
  const Loaded loaded = load_through(file, request, none, /*use_pinmem=*/false, {}, {});
  std::vector<std::string> found;
  found.reserve(loaded.names.size());
  for (const Name& name : loaded.names) {
    found.emplace_back(name.name);
  }
  return {std::move(found), std::string(loaded.version)};
}

void load_bytes_op(const std::string& file, const at::Tensor& bytes, std::int64_t num_thread,
                   bool use_direct_io, const MaybeHelper& helper,
                   std::optional<StringDict> storage_options,
                   std::optional<std::string> cache_dir) {
  refuse_if(!bytes.is_cpu() || bytes.scalar_type() != at::kByte || !bytes.is_contiguous(), file,
            "bytes must be a contiguous uint8 tensor on the CPU");
  refuse_if(!is_backed(bytes), file, "bytes reaches past its storage");
  const Wanted wanted{
      .num_thread = num_thread,
      .use_direct_io = use_direct_io,
      .store = {std::move(storage_options), std::move(cache_dir)},
  };
  const LoadRequest request = wanted.request(/*structured=*/true);
  const Targets none(/*use_pinmem=*/false, /*one_allocation=*/false);
  const HelperPtr lender = helper_or_own(helper);
  const rust::Slice<std::uint8_t> memory(bytes.mutable_data_ptr<std::uint8_t>(), bytes.numel());
  calling([&] { fill_bytes(path(file), request, memory, none, lender->buffers()); });
}

std::string explain_op(const std::string& file, std::int64_t num_thread, bool use_direct_io,
                       std::optional<std::string> way,
                       std::optional<std::vector<std::string>> names,
                       std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices,
                       std::optional<StringDict> storage_options,
                       std::optional<std::string> cache_dir, bool restore_aliases,
                       bool skip_unknown) {
  const Wanted wanted{
      .num_thread = num_thread,
      .use_direct_io = use_direct_io,
      .way = std::move(way),
      .names = std::move(names),
      .slices = std::move(slices),
      .store = {std::move(storage_options), std::move(cache_dir)},
      .restore_aliases = restore_aliases,
      .skip_unknown = skip_unknown,
  };
  const LoadRequest request = wanted.request(/*structured=*/false);
  const Targets none(/*use_pinmem=*/false, /*one_allocation=*/false);
  return std::string(calling([&] { return explain(path(file), request, none); }));
}

StringDict metadata_op(const std::string& file, const std::optional<StringDict>& storage_options) {
  StringDict entries;
  const StorageOptions storage = Store{storage_options, {}}.told();
  for (const Pair& entry : calling([&] { return metadata(path(file), storage); })) {
    entries.insert(std::string(entry.first), std::string(entry.second));
  }
  return entries;
}

std::int64_t byte_len_op(const std::string& file, const std::optional<StringDict>& storage_options,
                         std::optional<std::string> cache_dir) {
  const StorageOptions storage = Store{storage_options, std::move(cache_dir)}.told();
  return calling([&] { return byte_len(path(file), storage); });
}

}  // namespace veturboio::core
