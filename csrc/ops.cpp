// The operators of torch.ops.veturboio: the schemas at the end of this file are the reference.
//
// An operator defined from a schema string alone is pure to TorchScript, which deletes a save
// whose result nobody uses and merges two loads of one file. CONSERVATIVE keeps every call.

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "veturboio/csrc/error.h"
#include "veturboio/csrc/state_dict.h"
#include "veturboio/csrc/tensor.h"
#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {

void raise(const rust::Error& error) {
  const rust::String kind = failure_kind();
  if (kind == "format" || kind == "unsupported" || kind == "invalid argument") {
    C10_THROW_ERROR(ValueError, error.what());
  }
  if (kind == "not implemented") {
    C10_THROW_ERROR(NotImplementedError, error.what());
  }
  C10_THROW_ERROR(Error, error.what());
}

namespace {

using TensorDict = c10::Dict<std::string, at::Tensor>;
using StringDict = c10::Dict<std::string, std::string>;

// Paths are bytes to the system, whatever their encoding.
rust::Slice<const std::uint8_t> path(const std::string& file) {
  return {reinterpret_cast<const std::uint8_t*>(file.data()), file.size()};
}

Loaded load_file(const std::string& file, const at::Device& device, std::int64_t num_thread,
                 bool use_direct_io, bool structured) {
  const LoadRequest request{.num_thread = num_thread,
                            .header_only = device.is_meta(),
                            .structured = structured,
                            .use_direct_io = use_direct_io};
  return calling([&] { return load(path(file), request); });
}

// The tensors of a load on their device; they take its region.
std::vector<at::Tensor> tensors_on(const at::Device& device, Loaded& loaded) {
  if (device.is_meta()) {
    return make_meta_tensors(loaded.tensors, loaded.storages);
  }
  std::vector<at::Tensor> tensors =
      std::move(*make_tensors(loaded.tensors, loaded.storages, std::move(loaded.region)));
  if (!device.is_cpu()) {
    for (at::Tensor& tensor : tensors) {
      const bool requires_grad = tensor.requires_grad();
      tensor = tensor.detach().to(device).set_requires_grad(requires_grad);
    }
  }
  return tensors;
}

TensorDict named(const Loaded& loaded, const std::vector<at::Tensor>& tensors) {
  TensorDict state_dict;
  state_dict.reserve(loaded.names.size());
  for (const Name& name : loaded.names) {
    state_dict.insert(std::string(name.name), tensors.at(name.tensor));
  }
  return state_dict;
}

// Fills the caller's tensors: the core those in host memory, torch what it leaves.
void fill_tensors(const std::string& file, std::int64_t num_thread, const TensorDict& targets) {
  StateDict tensors;
  for (const auto& entry : targets) {
    const at::Tensor tensor = entry.value();
    tensors.push(entry.key(), &tensor);
  }
  const rust::Vec<std::size_t> left =
      calling([&] { return fill(path(file), num_thread, tensors); });
  if (left.empty()) {
    return;
  }
  const at::NoGradGuard no_grad;
  Loaded loaded = load_file(file, at::kCPU, num_thread, false, /*structured=*/false);
  const TensorDict sources = named(loaded, tensors_on(at::kCPU, loaded));
  for (const std::size_t index : left) {
    const auto& [name, target] = tensors.at(index);
    const at::Tensor source = sources.at(name).reshape({-1});
    target.view({-1}).narrow(0, 0, source.numel()).copy_(source);
  }
}

TensorDict load_op(const std::string& file, const std::optional<at::Device>& map_location,
                   std::int64_t num_thread, bool use_direct_io,
                   const std::optional<TensorDict>& state_dict) {
  if (state_dict.has_value()) {
    fill_tensors(file, num_thread, *state_dict);
    return *state_dict;
  }
  const at::Device device = map_location.value_or(at::kCPU);
  Loaded loaded = load_file(file, device, num_thread, use_direct_io, /*structured=*/false);
  return named(loaded, tensors_on(device, loaded));
}

void load_bytes_op(const std::string& file, const at::Tensor& bytes, std::int64_t num_thread,
                   bool use_direct_io) {
  TORCH_CHECK_VALUE(bytes.is_cpu() && bytes.scalar_type() == at::kByte && bytes.is_contiguous(),
                    "bytes must be a contiguous uint8 tensor on the CPU");
  const LoadRequest request{.num_thread = num_thread,
                            .header_only = false,
                            .structured = false,
                            .use_direct_io = use_direct_io};
  const rust::Slice<std::uint8_t> memory(bytes.mutable_data_ptr<std::uint8_t>(), bytes.numel());
  calling([&] { fill_bytes(path(file), request, memory); });
}

std::tuple<TensorDict, std::vector<at::Tensor>, std::string> load_values_op(
    const std::string& file, const std::optional<at::Device>& map_location, std::int64_t num_thread,
    bool use_direct_io) {
  const at::Device device = map_location.value_or(at::kCPU);
  Loaded loaded = load_file(file, device, num_thread, use_direct_io, /*structured=*/true);
  std::vector<at::Tensor> tensors = tensors_on(device, loaded);
  TensorDict state_dict = named(loaded, tensors);
  if (loaded.structure.empty()) {
    tensors.clear();
  }
  return {std::move(state_dict), std::move(tensors), std::string(loaded.structure)};
}

std::int64_t* counters(const std::optional<at::Tensor>& progress) {
  if (!progress.has_value()) {
    return nullptr;
  }
  TORCH_CHECK_VALUE(progress->is_cpu() && progress->scalar_type() == at::kLong &&
                        progress->is_contiguous() && progress->numel() == 2,
                    "progress must be an int64[2] tensor on the CPU");
  return progress->mutable_data_ptr<std::int64_t>();
}

void save_op(const TensorDict& state_dict, const std::string& file,
             const std::optional<StringDict>& metadata, bool force_contiguous,
             bool force_save_shared_tensor, bool force_clone_shared_tensor, std::int64_t num_thread,
             const std::optional<at::Tensor>& progress) {
  StateDict tensors;
  for (const auto& entry : state_dict) {
    const at::Tensor tensor = entry.value();
    tensors.push(entry.key(), &tensor);
  }
  SaveRequest request{
      .metadata = {},
      .force_contiguous = force_contiguous,
      .force_save_shared_tensor = force_save_shared_tensor,
      .force_clone_shared_tensor = force_clone_shared_tensor,
      .num_thread = num_thread,
  };
  if (metadata.has_value()) {
    for (const auto& entry : *metadata) {
      request.metadata.push_back(Pair{entry.key(), entry.value()});
    }
  }
  std::int64_t* const watched = counters(progress);
  calling([&] { save(tensors, path(file), request, watched); });
}

StringDict metadata_op(const std::string& file) {
  StringDict entries;
  for (const Pair& entry : calling([&] { return metadata(path(file)); })) {
    entries.insert(std::string(entry.first), std::string(entry.second));
  }
  return entries;
}

std::tuple<std::string, std::int64_t, std::optional<std::string>, std::string> take_failure_op() {
  const Failure failure = take_failure();
  std::optional<std::string> tensor;
  if (failure.has_tensor) {
    tensor = std::string(failure.tensor);
  }
  return {std::string(failure.kind), failure.errno_, tensor, std::string(failure.reason)};
}

void provoke_panic_op(const std::string& text) {
  calling([&] { provoke_panic(text); });
}

template <typename Function>
void define(torch::Library& library, const char* schema, Function function) {
  library.def(torch::schema(schema, c10::AliasAnalysisKind::CONSERVATIVE), function);
}

TORCH_LIBRARY(veturboio, m) {
  // Loads a safetensors or PyTorch file. The tensors of a PyTorch file get the names that lead to
  // them, joined by dots; what is no tensor is left out. `map_location`: the device of the tensors,
  // the CPU by default; `meta` reads the header alone. `num_thread`: upper bound of reader threads.
  // `use_direct_io` reads past the page cache, where the file system allows it. `state_dict`:
  // tensors to be filled in place, and returned.
  define(m,
         "load(str file, *, Device? map_location=None, int num_thread=32, "
         "bool use_direct_io=False, Dict(str, Tensor)? state_dict=None) -> Dict(str, Tensor)",
         &load_op);

  // The same for Python, which builds the values of a PyTorch file as they were: its tensors, and
  // the values that hold them as JSON. A safetensors file has neither, and a PyTorch file no names.
  define(m,
         "_load_values(str file, *, Device? map_location=None, int num_thread=32, "
         "bool use_direct_io=False) -> "
         "(Dict(str, Tensor) state_dict, Tensor[] tensors, str structure)",
         &load_values_op);

  // Reads a file as it is into a uint8[length] CPU tensor, once it has been found well formed.
  define(m,
         "_load_bytes(str file, Tensor bytes, *, int num_thread=32, bool use_direct_io=False) "
         "-> ()",
         &load_bytes_op);

  // Saves a state_dict as a safetensors file, which is replaced in one step. `progress`: an
  // int64[2] CPU tensor that is told the bytes done and the bytes in all while they move.
  define(m,
         "save(Dict(str, Tensor) state_dict, str file, *, Dict(str, str)? metadata=None, "
         "bool force_contiguous=True, bool force_save_shared_tensor=False, "
         "bool force_clone_shared_tensor=False, int num_thread=32, Tensor? progress=None) -> ()",
         &save_op);

  // The free-form strings that a safetensors file holds.
  define(m, "metadata(str file) -> Dict(str, str)", &metadata_op);

  // What the last failed call on this thread failed on: kind, errno, tensor, reason. Python makes
  // its exceptions from it. Asking forgets.
  define(m, "_take_failure() -> (str kind, int errno, str? tensor, str reason)", &take_failure_op);

  // Panics in the core. For the tests: a panic must arrive here as an error.
  define(m, "_provoke_panic(str text) -> ()", &provoke_panic_op);
}

}  // namespace
}  // namespace veturboio::core
