// The operators of torch.ops.veturboio: the schemas at the end of this file are the reference.
//
// An operator defined from a schema string alone is pure to TorchScript, which deletes a save
// whose result nobody uses and merges two loads of one file. CONSERVATIVE keeps every call.

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "veturboio/csrc/error.h"
#include "veturboio/csrc/helper.h"
#include "veturboio/csrc/saving.h"
#include "veturboio/csrc/state_dict.h"
#include "veturboio/csrc/targets.h"
#include "veturboio/csrc/tensor.h"
#include "veturboio/csrc/wanted.h"
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
  if (kind == "out of memory") {
    C10_THROW_ERROR(OutOfMemoryError, error.what());
  }
  C10_THROW_ERROR(Error, error.what());
}

namespace {

using MaybeHelper = std::optional<HelperPtr>;
using TensorDict = c10::Dict<std::string, at::Tensor>;

// Paths are bytes to the system, whatever their encoding.
rust::Slice<const std::uint8_t> path(const std::string& file) {
  return {reinterpret_cast<const std::uint8_t*>(file.data()), file.size()};
}

// The caller's helper, or one for this call alone.
HelperPtr helper_or_own(const MaybeHelper& helper) {
  return helper.has_value() ? *helper : c10::make_intrusive<IOHelper>(kHelperBytes);
}

// A load says of a helper what memory it is for.
void check_helper(const std::string& file, const MaybeHelper& helper, bool use_pinmem) {
  if (helper.has_value()) {
    calling([&] { agree((*helper)->buffers(), path(file), use_pinmem); });
  }
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
    TORCH_CHECK_VALUE(!names.has_value() && !slices.has_value() && !dtype.has_value(),
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
  const LoadRequest request = wanted.request(/*structured=*/false);
  const Targets targets(use_pinmem, one_allocation);
  Loaded loaded = load_through(file, request, targets, use_pinmem, helper, progress);
  return named(loaded, tensors_of(wanted, loaded, targets));
}

// Bytes of the core as a tensor, which keeps them.
at::Tensor as_tensor(rust::Vec<std::uint8_t> bytes) {
  auto* const held = new rust::Vec<std::uint8_t>(std::move(bytes));
  const auto len = static_cast<std::int64_t>(held->size());
  return at::from_blob(held->data(), {len}, [held](void*) { delete held; }, at::kByte);
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
  TORCH_CHECK_VALUE(bytes.is_cpu() && bytes.scalar_type() == at::kByte && bytes.is_contiguous(),
                    "bytes must be a contiguous uint8 tensor on the CPU");
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

void save_as_called(const TensorDict& state_dict, const std::string& file,
                    const std::optional<StringDict>& metadata, bool force_contiguous,
                    bool force_save_shared_tensor, bool force_clone_shared_tensor,
                    std::int64_t num_thread, const std::optional<at::Tensor>& progress,
                    const MaybeHelper& helper, bool durable, bool overwrite,
                    const std::optional<StringDict>& storage_options,
                    const std::optional<TicketPtr>& called) {
  const TicketPtr ticket = called.has_value() ? *called : c10::make_intrusive<Ticket>();
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
      .durable = durable,
      .overwrite = overwrite,
      .storage = Store{storage_options, {}}.told(),
  };
  if (metadata.has_value()) {
    for (const auto& entry : *metadata) {
      request.metadata.push_back(Pair{entry.key(), entry.value()});
    }
  }
  std::int64_t* const watched = counters(progress);
  const HelperPtr lender = helper_or_own(helper);
  calling(
      [&] { save(tensors, path(file), request, ticket->ticket(), lender->buffers(), watched); });
}

void save_op(const TensorDict& state_dict, const std::string& file,
             const std::optional<StringDict>& metadata, bool force_contiguous,
             bool force_save_shared_tensor, bool force_clone_shared_tensor, std::int64_t num_thread,
             const std::optional<at::Tensor>& progress, const MaybeHelper& helper, bool durable,
             bool overwrite, const std::optional<StringDict>& storage_options) {
  save_as_called(state_dict, file, metadata, force_contiguous, force_save_shared_tensor,
                 force_clone_shared_tensor, num_thread, progress, helper, durable, overwrite,
                 storage_options, /*called=*/std::nullopt);
  for (const rust::String& note : take_notes()) {
    TORCH_WARN(std::string(note));
  }
}

void send_op(const std::string& from, const std::string& file, bool overwrite,
             const std::optional<StringDict>& storage_options,
             const std::optional<TicketPtr>& called) {
  const StorageOptions storage = Store{storage_options, {}}.told();
  const TicketPtr ticket = called.has_value() ? *called : c10::make_intrusive<Ticket>();
  calling([&] { send(path(from), path(file), overwrite, storage, ticket->ticket()); });
}

FilePtr create_file_op(const std::string& file, bool overwrite) {
  return c10::make_intrusive<File>(calling([&] { return create_file(path(file), overwrite); }));
}

std::int64_t descriptor_op(const FilePtr& file) { return file->sink().descriptor(); }

void abort_file_op(const FilePtr& file) { file->sink().abort(); }

void commit_file_op(const FilePtr& file) {
  calling([&] { commit_file(file->sink()); });
}

TicketPtr ticket_op() { return c10::make_intrusive<Ticket>(); }

std::vector<std::string> take_notes_op() {
  std::vector<std::string> notes;
  for (const rust::String& note : take_notes()) {
    notes.emplace_back(note);
  }
  return notes;
}

HelperPtr init_io_helper_op(std::int64_t nbytes) { return c10::make_intrusive<IOHelper>(nbytes); }

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

std::tuple<std::string, std::int64_t, std::optional<std::string>, std::string> take_failure_op(
    const std::string& text) {
  const Failure failure = take_failure(text);
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
  // Memory that is kept from one load or save to the next, `nbytes` bytes at most. Saved with a
  // module, it comes back empty.
  m.class_<IOHelper>("IOHelper")
      .def(torch::init<std::int64_t>(), "", {torch::arg("nbytes") = kHelperBytes})
      .def("nbytes", &IOHelper::nbytes)
      .def("capacity", &IOHelper::capacity)
      .def("close", &IOHelper::close)
      .def_pickle([](const HelperPtr& helper) { return helper->capacity(); },
                  [](std::int64_t capacity) { return c10::make_intrusive<IOHelper>(capacity); });

  m.class_<Ticket>("SaveTicket");
  m.class_<File>("FileSink");

  // The same for C++ programs, to which no class can be handed.
  define(m, "init_io_helper(int nbytes=268435456) -> __torch__.torch.classes.veturboio.IOHelper",
         &init_io_helper_op);

  // Loads a safetensors or PyTorch file. The tensors of a PyTorch file get the names that lead to
  // them, joined by dots; what is no tensor is left out. `map_location`: the device of the tensors,
  // the CPU by default; `meta` reads the header alone. `num_thread`: upper bound of reader threads.
  // `use_direct_io` reads past the page cache, where the file system allows it. `state_dict`:
  // tensors to be filled in place, and returned. `use_pinmem`: through page-locked memory, for a
  // device. `helper`: keeps the memory that a load needs beside its tensors. `way`: auto (or the
  // variable VETURBOIO_WAY), map, read, direct or uring. `names`: the tensors wanted. `slices`: of
  // some tensors, dimension, start and stop for each cut; what is not wanted is not read. A stop of
  // -2^63 takes the one element at start and drops the dimension; three numbers whose stop is
  // -2^63 + 1 give the cut before a step, which stands in place of start.
  // `progress`: as for save. `devices`: devices by name, or by what names begin with up to a dot;
  // the longest decides, `map_location` for those that none names. `dtype`: what tensors of
  // floating point are converted to. `one_allocation`: one piece of memory for all tensors on a
  // device.
  // `progress`: as for save. `storage_options`: of a store that `file` is an address of, by the
  // names of its own tools' variables in lower case. `cache_dir`: keeps what is downloaded.
  // `restore_aliases`: names that the metadata of a safetensors file has for a stored tensor come
  // back as that tensor.
  // `skip_unknown`: what a PyTorch file holds of unknown classes is left out, not refused.
  define(m,
         "load(str file, *, Device? map_location=None, int num_thread=32, "
         "bool use_direct_io=False, Dict(str, Tensor)? state_dict=None, bool use_pinmem=False, "
         "__torch__.torch.classes.veturboio.IOHelper? helper=None, str? way=None, "
         "str[]? names=None, Dict(str, int[])? slices=None, Tensor? progress=None, "
         "Dict(str, Device)? devices=None, ScalarType? dtype=None, bool one_allocation=False, "
         "Dict(str, str)? storage_options=None, str? cache_dir=None, "
         "bool restore_aliases=True, bool skip_unknown=False) -> Dict(str, Tensor)",
         &load_op);

  // The same for Python, which builds the values of a PyTorch file as they were: its tensors, the
  // devices they were saved from as JSON, and a pickle of the values that can do nothing but build
  // them (src/format/emit.rs). A safetensors file has none of these, and a PyTorch file no names.
  define(m,
         "_load_values(str file, *, Device? map_location=None, int num_thread=32, "
         "bool use_direct_io=False, bool use_pinmem=False, "
         "__torch__.torch.classes.veturboio.IOHelper? helper=None, str? way=None, "
         "str[]? names=None, Dict(str, int[])? slices=None, Tensor? progress=None, "
         "Dict(str, Device)? devices=None, ScalarType? dtype=None, bool one_allocation=False, "
         "Dict(str, str)? storage_options=None, str? cache_dir=None, str? version=None, "
         "bool restore_aliases=True, bool skip_unknown=False) -> "
         "(Dict(str, Tensor) state_dict, Tensor[] tensors, str structure, Tensor? values)",
         &load_values_op);

  // The names of the tensors that a load would return, and which version of the file has them:
  // given to `_load_values`, any other is refused with ESTALE.
  define(m,
         "_names(str file, *, int num_thread=32, str[]? names=None, Dict(str, int[])? slices=None, "
         "Dict(str, str)? storage_options=None, str? cache_dir=None, bool restore_aliases=True, "
         "bool skip_unknown=False) -> (str[] names, str version)",
         &names_op);

  // Reads a file as it is into a uint8[length] CPU tensor, once it has been found well formed.
  define(m,
         "_load_bytes(str file, Tensor bytes, *, int num_thread=32, bool use_direct_io=False, "
         "__torch__.torch.classes.veturboio.IOHelper? helper=None, "
         "Dict(str, str)? storage_options=None, str? cache_dir=None) -> ()",
         &load_bytes_op);

  // The length of what a file or an address names.
  define(m,
         "_byte_len(str file, *, Dict(str, str)? storage_options=None, str? cache_dir=None) -> int",
         &byte_len_op);

  // Says in a sentence which way a load would take, and why.
  define(m,
         "explain(str file, *, int num_thread=32, bool use_direct_io=False, str? way=None, "
         "str[]? names=None, Dict(str, int[])? slices=None, Dict(str, str)? storage_options=None, "
         "str? cache_dir=None, bool restore_aliases=True, bool skip_unknown=False) -> str",
         &explain_op);

  // Saves a state_dict as a safetensors file, which is replaced in one step. `progress`: an
  // int64[2] CPU tensor that is told the bytes done and the bytes in all while they move.
  // `durable`: the file is on the disk when the call returns. `overwrite`: false refuses to replace
  // a file. `storage_options`: as for load.
  define(m,
         "save(Dict(str, Tensor) state_dict, str file, *, Dict(str, str)? metadata=None, "
         "bool force_contiguous=True, bool force_save_shared_tensor=False, "
         "bool force_clone_shared_tensor=False, int num_thread=32, Tensor? progress=None, "
         "__torch__.torch.classes.veturboio.IOHelper? helper=None, bool durable=True, "
         "bool overwrite=True, Dict(str, str)? storage_options=None) -> ()",
         &save_op);

  // The same for Python, which takes the ticket when it is called and saves later, and asks for
  // what there is to tell.
  define(m,
         "_save(Dict(str, Tensor) state_dict, str file, *, Dict(str, str)? metadata=None, "
         "bool force_contiguous=True, bool force_save_shared_tensor=False, "
         "bool force_clone_shared_tensor=False, int num_thread=32, Tensor? progress=None, "
         "__torch__.torch.classes.veturboio.IOHelper? helper=None, bool durable=True, "
         "bool overwrite=True, Dict(str, str)? storage_options=None, "
         "__torch__.torch.classes.veturboio.SaveTicket? ticket=None) -> ()",
         &save_as_called);

  // Sends a file of this machine, as it is, to where an address says.
  define(m,
         "_send(str source, str file, *, bool overwrite=True, Dict(str, str)? "
         "storage_options=None, __torch__.torch.classes.veturboio.SaveTicket? ticket=None) -> ()",
         &send_op);

  // The time of a call: of two saves to one target, the one with the later ticket remains.
  define(m, "_save_ticket() -> __torch__.torch.classes.veturboio.SaveTicket", &ticket_op);

  // A file of this machine whose bytes Python writes through a descriptor. It takes its place when
  // it is committed; aborted or dropped, it goes.
  define(m,
         "_create_file(str file, *, bool overwrite=True) -> "
         "__torch__.torch.classes.veturboio.FileSink",
         &create_file_op);
  define(m, "_file_descriptor(__torch__.torch.classes.veturboio.FileSink file) -> int",
         &descriptor_op);
  define(m, "_abort_file(__torch__.torch.classes.veturboio.FileSink file) -> ()", &abort_file_op);
  define(m, "_commit_file(__torch__.torch.classes.veturboio.FileSink file) -> ()", &commit_file_op);

  // What the last save on this thread by an operator of Python's has to tell beside its success.
  // Asking forgets.
  define(m, "_take_notes() -> str[]", &take_notes_op);

  // The free-form strings that a safetensors file holds.
  define(m, "metadata(str file, *, Dict(str, str)? storage_options=None) -> Dict(str, str)",
         &metadata_op);

  // What a call on this thread that failed with this text failed on: kind, errno, tensor, reason.
  // Python makes its exceptions from it. Asking forgets.
  define(m, "_take_failure(str text) -> (str kind, int errno, str? tensor, str reason)",
         &take_failure_op);

  // Panics in the core. For the tests: a panic must arrive here as an error.
  define(m, "_provoke_panic(str text) -> ()", &provoke_panic_op);
}

}  // namespace
}  // namespace veturboio::core
