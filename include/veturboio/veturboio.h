// veTurboIO for C++: reads and writes safetensors files as ordinary at::Tensor.
//
//     veturboio::StateDict weights = veturboio::load("model.safetensors");
//     veturboio::save(weights, "copy.safetensors");
//
// In CMake, `find_package(veturboio)` and the target `veturboio::veturboio` bring along all that
// is needed, libtorch included. No Python takes part.
//
// This header is the whole C++ interface. It calls the operators `veturboio::load`, `save` and
// `metadata` through the dispatcher of libtorch, as Python and TorchScript do: no C++ symbol
// crosses the border of the library, so the compiler that builds the program need not be the one
// that built the library.
//
// Errors are thrown as c10::Error. `what_without_backtrace()` gives the plain text, "verb object:
// cause", the same in every language. A subclass tells the caller's mistakes from the system's:
//
//     c10::ValueError  the file is malformed, or the arguments cannot be honoured
//     c10::Error       all else: what the operating system refused
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/class_type.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/function.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// Does nothing. A program that refers to it depends on libveturboio.so, and loading that library
// registers the operators; without a reference the linker may leave the library out.
extern "C" void veturboio_link(void);

namespace veturboio {

// Tensors by name. It is a handle: a copy is the same dictionary.
using StateDict = c10::Dict<std::string, at::Tensor>;

// The `__metadata__` of a file: strings by name.
using Metadata = c10::Dict<std::string, std::string>;

// Memory that is kept from one load or save to the next: pass the same helper to each. It is a
// handle: a copy is the same helper, and the last one gives the memory back.
class IOHelper {
 public:
  // Keeps up to `nbytes` bytes.
  explicit IOHelper(int64_t nbytes = 256 << 20);

  // Bytes that are held now.
  int64_t nbytes() const { return invoke("nbytes").toInt(); }

  // Bytes that are kept at most.
  int64_t capacity() const { return invoke("capacity").toInt(); }

  // Gives the memory back. The helper can still be passed, and keeps nothing.
  void close() { invoke("close"); }

  const c10::IValue& value() const { return value_; }

 private:
  c10::IValue invoke(const char* method) const {
    return value_.toObjectRef().type()->getMethod(method)({value_});
  }

  c10::IValue value_;
};

struct LoadOptions {
  // Where the tensors are to be. None means the CPU; `meta` reads names, shapes and types only.
  std::optional<c10::Device> map_location = std::nullopt;
  // How many threads may read, at most.
  int64_t num_thread = 32;
  // Read past the page cache into memory of the load's own, where the file system allows it.
  bool use_direct_io = false;
  // Tensors to be filled in place instead of making new ones: of the same names and dtypes,
  // contiguous, and large enough. They are what load returns.
  std::optional<StateDict> state_dict = std::nullopt;
  // Through page-locked memory of the device's own allocator. May not change from one use of a
  // helper to the next.
  bool use_pinmem = false;
  // Keeps the memory that a load needs beside its tensors.
  std::optional<IOHelper> helper = std::nullopt;
  // How the bytes come: "auto", "map", "read" through the page cache, "direct" past it, "uring" the
  // same with io_uring. None asks the variable VETURBOIO_WAY.
  std::optional<std::string> way = std::nullopt;
  // The tensors wanted. Only they are read.
  std::optional<std::vector<std::string>> names = std::nullopt;
  // Of some tensors only a part: dimension, start and stop for each cut. Only that part is read.
  std::optional<c10::Dict<std::string, std::vector<int64_t>>> slices = std::nullopt;
  // As in SaveOptions.
  std::optional<at::Tensor> progress = std::nullopt;
  // Devices by name, or by what names begin with up to a dot; the longest decides, map_location
  // for those that none names.
  std::optional<c10::Dict<std::string, c10::Device>> devices = std::nullopt;
  // What tensors of floating point are converted to on their way. Others stay as they are.
  std::optional<at::ScalarType> dtype = std::nullopt;
  // One piece of memory for all tensors on a device. By default each has its own.
  bool one_allocation = false;
  // Of the store that the file is an address of, by the names of its own tools' variables in lower
  // case, such as aws_endpoint_url. They precede the environment.
  std::optional<c10::Dict<std::string, std::string>> storage_options = std::nullopt;
  // Where downloaded objects are kept for the next load.
  std::optional<std::string> cache_dir = std::nullopt;
  // Names that the metadata of a safetensors file has for a tensor that is stored under another
  // name, as tied weights have, come back as that tensor. False: only the stored names.
  bool restore_aliases = true;
  // What a PyTorch file holds of unknown classes is left out. False: such a file is refused.
  bool skip_unknown = false;
};

struct SaveOptions {
  // Strings to keep in the file beside the tensors. `format` is "pt" unless they have their own.
  std::optional<Metadata> metadata = std::nullopt;
  // Write tensors that are not contiguous as if they were. False: they are refused.
  bool force_contiguous = true;
  // Allow tensors that share memory: the first is written, the other names are noted in the
  // metadata and are the same tensor again after a load. False: they are refused.
  bool force_save_shared_tensor = false;
  // With force_save_shared_tensor: write each name in full instead.
  bool force_clone_shared_tensor = false;
  // How many threads may write, at most.
  int64_t num_thread = 32;
  // An int64 tensor of two elements on the CPU: the bytes written so far, and all bytes. Both
  // change while save runs, for another thread to look at.
  std::optional<at::Tensor> progress = std::nullopt;
  // Keeps the memory in which small and non-contiguous tensors are gathered.
  std::optional<IOHelper> helper = std::nullopt;
  // The file is on the disk when save returns. False leaves that to the system.
  bool durable = true;
  // False: a file or an object that is there already is refused.
  bool overwrite = true;
  // As in LoadOptions.
  std::optional<c10::Dict<std::string, std::string>> storage_options = std::nullopt;
};

namespace detail {

inline c10::OperatorHandle find_operator(const char* name) {
  veturboio_link();
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

// The boxed call takes what the schema says, whatever C++ types the library itself uses.
template <class... Arguments>
torch::jit::Stack call(const c10::OperatorHandle& op, Arguments&&... arguments) {
  torch::jit::Stack stack;
  torch::jit::push(stack, std::forward<Arguments>(arguments)...);
  // A newer library may know parameters that this header does not: they take their defaults.
  const auto& known = op.schema().arguments();
  for (std::size_t i = stack.size(); i < known.size(); ++i) {
    stack.push_back(known[i].default_value().value_or(c10::IValue()));
  }
  op.callBoxed(stack);
  return stack;
}

inline c10::IValue value(const std::optional<IOHelper>& helper) {
  return helper.has_value() ? helper->value() : c10::IValue();
}

}  // namespace detail

inline IOHelper::IOHelper(int64_t nbytes) {
  static const c10::OperatorHandle op = detail::find_operator("veturboio::init_io_helper");
  value_ = detail::call(op, nbytes).at(0);
}

// Loads every tensor of a safetensors or PyTorch file; those of a PyTorch file by the names that
// lead to them, joined by dots.
//
// The tensors can be written to without the file changing, and each lives as long as it is used.
// Throws c10::Error if the file cannot be opened or read ("open model.safetensors: No such file or
// directory"), and c10::ValueError if it is malformed ("read model.safetensors: ...").
inline StateDict load(const std::string& file, const LoadOptions& options = {}) {
  static const c10::OperatorHandle op = detail::find_operator("veturboio::load");
  auto stack = detail::call(
      op, file, options.map_location, options.num_thread, options.use_direct_io, options.state_dict,
      options.use_pinmem, detail::value(options.helper), options.way, options.names, options.slices,
      options.progress, options.devices, options.dtype, options.one_allocation,
      options.storage_options, options.cache_dir, options.restore_aliases, options.skip_unknown);
  return c10::impl::toTypedDict<std::string, at::Tensor>(stack.at(0).toGenericDict());
}

// Says in a sentence which way a load would take, and why. Only the header is read. Throws as load
// does.
inline std::string explain(const std::string& file, const LoadOptions& options = {}) {
  static const c10::OperatorHandle op = detail::find_operator("veturboio::explain");
  auto stack = detail::call(op, file, options.num_thread, options.use_direct_io, options.way,
                            options.names, options.slices, options.storage_options,
                            options.cache_dir, options.restore_aliases, options.skip_unknown);
  return stack.at(0).toStringRef();
}

// Saves tensors to a safetensors file.
//
// The file is written beside its final place, synced and renamed: at any moment the path names
// either the old file or the whole new one, which has the mode, owner and attributes of the old
// one. A file that can be written but not replaced, such as a mount point, is written in place
// instead, and a warning of torch says so. Of several saves to one file the last one called
// remains. The dictionary is not changed. Throws c10::ValueError if safetensors cannot hold the
// tensors as asked, and c10::Error if the operating system refuses.
inline void save(const StateDict& state_dict, const std::string& file,
                 const SaveOptions& options = {}) {
  static const c10::OperatorHandle op = detail::find_operator("veturboio::save");
  detail::call(op, state_dict, file, options.metadata, options.force_contiguous,
               options.force_save_shared_tensor, options.force_clone_shared_tensor,
               options.num_thread, options.progress, detail::value(options.helper), options.durable,
               options.overwrite, options.storage_options);
}

// Reads the `__metadata__` of a safetensors file; empty if it has none.
//
// Only the header is read. Throws as load does.
inline Metadata metadata(const std::string& file) {
  static const c10::OperatorHandle op = detail::find_operator("veturboio::metadata");
  auto stack = detail::call(op, file);
  return c10::impl::toTypedDict<std::string, std::string>(stack.at(0).toGenericDict());
}

}  // namespace veturboio
