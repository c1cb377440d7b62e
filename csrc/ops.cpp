// The operators of torch.ops.veturboio: the schemas at the end of this file are the reference.
//
// An operator defined from a schema string alone is pure to TorchScript, which deletes a save
// whose result nobody uses and merges two loads of one file. CONSERVATIVE keeps every call.

#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "veturboio/csrc/error.h"
#include "veturboio/csrc/helper.h"
#include "veturboio/csrc/ops.h"
#include "veturboio/csrc/saving.h"
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

HelperPtr init_io_helper_op(std::int64_t nbytes) { return c10::make_intrusive<IOHelper>(nbytes); }

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
