// The functions of the operators, which ops.cpp registers, and what they share.
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "rust/cxx.h"
#include "veturboio/csrc/helper.h"
#include "veturboio/csrc/saving.h"
#include "veturboio/csrc/wanted.h"

namespace veturboio::core {

using MaybeHelper = std::optional<HelperPtr>;
using TensorDict = c10::Dict<std::string, at::Tensor>;

// Paths are bytes to the system, whatever their encoding.
inline rust::Slice<const std::uint8_t> path(const std::string& file) {
  return {reinterpret_cast<const std::uint8_t*>(file.data()), file.size()};
}

// The caller's helper, or one for this call alone.
inline HelperPtr helper_or_own(const MaybeHelper& helper) {
  return helper.has_value() ? *helper : c10::make_intrusive<IOHelper>(kHelperBytes);
}

// The two numbers of a caller who watches; null if there is none.
std::int64_t* counters(const std::optional<at::Tensor>& progress);

// Loads: load_ops.cpp.
TensorDict load_op(const std::string& file, const std::optional<at::Device>& map_location,
                   std::int64_t num_thread, bool use_direct_io,
                   const std::optional<TensorDict>& state_dict, bool use_pinmem,
                   const MaybeHelper& helper, std::optional<std::string> way,
                   std::optional<std::vector<std::string>> names,
                   std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices,
                   const std::optional<at::Tensor>& progress, std::optional<DeviceDict> devices,
                   std::optional<at::ScalarType> dtype, bool one_allocation,
                   std::optional<StringDict> storage_options, std::optional<std::string> cache_dir,
                   bool restore_aliases, bool skip_unknown);

std::tuple<TensorDict, std::vector<at::Tensor>, std::string, std::optional<at::Tensor>>
load_values_op(const std::string& file, const std::optional<at::Device>& map_location,
               std::int64_t num_thread, bool use_direct_io, bool use_pinmem,
               const MaybeHelper& helper, std::optional<std::string> way,
               std::optional<std::vector<std::string>> names,
               std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices,
               const std::optional<at::Tensor>& progress, std::optional<DeviceDict> devices,
               std::optional<at::ScalarType> dtype, bool one_allocation,
               std::optional<StringDict> storage_options, std::optional<std::string> cache_dir,
               std::optional<std::string> version, bool restore_aliases, bool skip_unknown);

std::tuple<std::vector<std::string>, std::string> names_op(
    const std::string& file, std::int64_t num_thread, std::optional<std::vector<std::string>> names,
    std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices,
    std::optional<StringDict> storage_options, std::optional<std::string> cache_dir,
    bool restore_aliases, bool skip_unknown);

void load_bytes_op(const std::string& file, const at::Tensor& bytes, std::int64_t num_thread,
                   bool use_direct_io, const MaybeHelper& helper,
                   std::optional<StringDict> storage_options, std::optional<std::string> cache_dir);

std::string explain_op(const std::string& file, std::int64_t num_thread, bool use_direct_io,
                       std::optional<std::string> way,
                       std::optional<std::vector<std::string>> names,
                       std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices,
                       std::optional<StringDict> storage_options,
                       std::optional<std::string> cache_dir, bool restore_aliases,
                       bool skip_unknown);

StringDict metadata_op(const std::string& file, const std::optional<StringDict>& storage_options);

std::int64_t byte_len_op(const std::string& file, const std::optional<StringDict>& storage_options,
                         std::optional<std::string> cache_dir);

// Saves: save_ops.cpp.
void save_as_called(const TensorDict& state_dict, const std::string& file,
                    const std::optional<StringDict>& metadata, bool force_contiguous,
                    bool force_save_shared_tensor, bool force_clone_shared_tensor,
                    std::int64_t num_thread, const std::optional<at::Tensor>& progress,
                    const MaybeHelper& helper, bool durable, bool overwrite,
                    const std::optional<StringDict>& storage_options,
                    const std::optional<TicketPtr>& called);

void save_op(const TensorDict& state_dict, const std::string& file,
             const std::optional<StringDict>& metadata, bool force_contiguous,
             bool force_save_shared_tensor, bool force_clone_shared_tensor, std::int64_t num_thread,
             const std::optional<at::Tensor>& progress, const MaybeHelper& helper, bool durable,
             bool overwrite, const std::optional<StringDict>& storage_options);

void send_op(const std::string& from, const std::string& file, bool overwrite,
             const std::optional<StringDict>& storage_options,
             const std::optional<TicketPtr>& called);

FilePtr create_file_op(const std::string& file, bool overwrite);

std::int64_t descriptor_op(const FilePtr& file);

void abort_file_op(const FilePtr& file);

void commit_file_op(const FilePtr& file);

TicketPtr ticket_op();

std::vector<std::string> take_notes_op();

}  // namespace veturboio::core
