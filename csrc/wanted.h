// What is wanted of a file, as the operators take it, in the words of the core.
#pragma once

#include <ATen/core/Dict.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {

using StringDict = c10::Dict<std::string, std::string>;
using DeviceDict = c10::Dict<std::string, at::Device>;

// What the caller says of a store.
struct Store {
  std::optional<StringDict> options;
  std::optional<std::string> cache_dir;

  StorageOptions told() const {
    StorageOptions told{.pairs = {}, .cache_dir = {}};
    // A path is bytes, whatever their encoding.
    for (const char byte : cache_dir.value_or("")) {
      told.cache_dir.push_back(static_cast<std::uint8_t>(byte));
    }
    if (options.has_value()) {
      for (const auto& entry : *options) {
        told.pairs.push_back(Pair{entry.key(), entry.value()});
      }
    }
    return told;
  }
};

// The parameters of the operators that load.
struct Wanted {
  std::int64_t num_thread;
  bool use_direct_io;
  std::optional<std::string> way = {};
  std::optional<std::vector<std::string>> names = {};
  std::optional<c10::Dict<std::string, std::vector<std::int64_t>>> slices = {};
  std::optional<at::Device> map_location = {};
  std::optional<DeviceDict> devices = {};
  std::optional<at::ScalarType> dtype = {};
  Store store = {};
  // The only version of the file that is wanted, if it is not any.
  std::optional<std::string> version = {};
  bool restore_aliases = true;
  bool skip_unknown = false;

  bool is_meta() const { return map_location.has_value() && map_location->is_meta(); }

  // Whether some tensors are wanted on the meta device, and not all.
  bool is_meta_for_some() const {
    if (!devices.has_value() || devices->empty()) {
      return false;
    }
    bool found = is_meta();
    for (const auto& entry : *devices) {
      found = found || entry.value().is_meta();
    }
    return found;
  }

  LoadRequest request(bool structured) const {
    LoadRequest request{
        .num_thread = num_thread,
        .header_only = is_meta(),
        .structured = structured,
        .skip_unknown = skip_unknown,
        .use_direct_io = use_direct_io,
        .way = way.value_or(""),
        .some = names.has_value(),
        .names = {},
        .slices = {},
        .placed = devices.has_value() || (map_location.has_value() && !is_meta()),
        .devices = {},
        .converted = dtype.has_value(),
        .dtype = static_cast<std::int8_t>(dtype.value_or(at::kFloat)),
        .storage = store.told(),
        .version = version.value_or(""),
        .restore_aliases = restore_aliases,
    };
    if (map_location.has_value() && !is_meta()) {
      request.devices.push_back(rule("", *map_location));
    }
    if (devices.has_value()) {
      for (const auto& entry : *devices) {
        request.devices.push_back(rule(entry.key(), entry.value()));
      }
    }
    if (names.has_value()) {
      for (const std::string& name : *names) {
        request.names.push_back(name);
      }
    }
    if (slices.has_value()) {
      for (const auto& entry : *slices) {
        SliceSpec slice{entry.key(), {}};
        for (const std::int64_t number : entry.value()) {
          slice.cuts.push_back(number);
        }
        request.slices.push_back(std::move(slice));
      }
    }
    return request;
  }

 private:
  static DeviceRule rule(const std::string& name, const at::Device& device) {
    return {name, static_cast<std::int8_t>(device.type()), device.index()};
  }
};

}  // namespace veturboio::core
