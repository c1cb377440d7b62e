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
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

// Does nothing. A program that refers to it depends on libveturboio.so, and loading that library
// registers the operators; without a reference the linker may leave the library out.
extern "C" void veturboio_link(void);

namespace veturboio {

// Tensors by name. It is a handle: a copy is the same dictionary.
using StateDict = c10::Dict<std::string, at::Tensor>;

// The `__metadata__` of a file: strings by name.
using Metadata = c10::Dict<std::string, std::string>;

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
};

struct SaveOptions {
  // Strings to keep in the file beside the tensors.
  std::optional<Metadata> metadata = std::nullopt;
  // Write tensors that are not contiguous as if they were. False: they are refused.
  bool force_contiguous = true;
  // Allow tensors that share memory: one is written, the other names are noted in the metadata
  // and are the same tensor again after a load. False: they are refused.
  bool force_save_shared_tensor = false;
  // With force_save_shared_tensor: write each name on its own instead.
  bool force_clone_shared_tensor = false;
  // How many threads may write, at most.
  int64_t num_thread = 32;
  // An int64 tensor of two elements on the CPU: the bytes written so far, and all bytes. Both
  // change while save runs, for another thread to look at.
  std::optional<at::Tensor> progress = std::nullopt;
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
  op.callBoxed(stack);
  return stack;
}

}  // namespace detail

// Loads every tensor of a safetensors or PyTorch file; those of a PyTorch file by the names that
// lead to them, joined by dots.
//
// The tensors can be written to without the file changing, and each lives as long as it is used.
// Throws c10::Error if the file cannot be opened or read ("open model.safetensors: No such file or
// directory"), and c10::ValueError if it is malformed ("read model.safetensors: ...").
inline StateDict load(const std::string& file, const LoadOptions& options = {}) {
  static const c10::OperatorHandle op = detail::find_operator("veturboio::load");
  auto stack = detail::call(op, file, options.map_location, options.num_thread,
                            options.use_direct_io, options.state_dict);
  return c10::impl::toTypedDict<std::string, at::Tensor>(stack.at(0).toGenericDict());
}

// Saves tensors to a safetensors file.
//
// The file is written beside its final place, synced and renamed: at any moment the path names
// either the old file or the whole new one. The dictionary is not changed.
// Throws c10::ValueError if safetensors cannot hold the tensors as asked, and c10::Error if the
// operating system refuses.
inline void save(const StateDict& state_dict, const std::string& file,
                 const SaveOptions& options = {}) {
  static const c10::OperatorHandle op = detail::find_operator("veturboio::save");
  detail::call(op, state_dict, file, options.metadata, options.force_contiguous,
               options.force_save_shared_tensor, options.force_clone_shared_tensor,
               options.num_thread, options.progress);
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
