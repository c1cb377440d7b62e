// The operators that save.

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "veturboio/csrc/error.h"
#include "veturboio/csrc/ops.h"
#include "veturboio/csrc/state_dict.h"
#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {

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

}  // namespace veturboio::core
