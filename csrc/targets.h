// Storages of a load on devices, and how they are filled.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "rust/cxx.h"
#include "veturboio/csrc/lanes.h"

namespace veturboio::core {

class StateDict;
struct Allocation;
struct PartSpec;
struct TargetSpec;

class Targets {
 public:
  Targets(bool use_pinmem, bool one_allocation)
      : use_pinmem_(use_pinmem), one_allocation_(one_allocation) {}
  Targets(const Targets&) = delete;
  Targets& operator=(const Targets&) = delete;
  // Whatever has become of the load, nothing is copied any more when its memory goes.
  ~Targets() { lanes_.settle(); }

  // The tensors that `adopt` takes memory of.
  void fill(const StateDict& tensors) { tensors_ = &tensors; }

  void add(const TargetSpec& spec) const;
  bool adopt(std::size_t tensor) const;
  Allocation allocate(std::size_t index) const;
  std::int8_t pinned_kind() const;
  std::unique_ptr<HostBytes> host_memory(std::size_t len) const;
  void begin() const;
  std::unique_ptr<Copies> copy(rust::Slice<const std::uint8_t> segment,
                               rust::Slice<const PartSpec> parts) const;
  bool is_out_of_memory() const { return out_of_memory_; }
  void finish() const;
  void abandon() const noexcept;

  const c10::Storage& storage(std::size_t index) const { return targets_.at(index).storage; }

 private:
  // A storage, as bytes and as what it holds.
  struct Target {
    const Lane* lane;
    std::uint64_t byte_len;  // in the file
    at::ScalarType from;
    at::ScalarType to;
    c10::Storage storage;
    at::Tensor bytes;
    at::Tensor typed;  // only where it is converted

    bool is_converted() const { return from != to; }
    std::uint64_t size() const;
    void hold(c10::Storage memory);
  };

  // Whether copies from a segment go on by themselves.
  bool goes_on(const Lane& lane) const {
    return lane.is_async() && static_cast<std::int8_t>(lane.device().type()) == pinned_kind_;
  }
  void allocate_together(const Lane& lane) const;
  void send(const Lane& lane, const std::uint8_t* segment, const PartSpec* begin,
            const PartSpec* end) const;
  void send_small(const Lane& lane, const std::uint8_t* segment, const PartSpec* begin,
                  const PartSpec* end) const;
  void send_converted(const Lane& lane, const std::uint8_t* bytes, const PartSpec& part) const;

  bool use_pinmem_;
  mutable std::int8_t pinned_kind_ = -1;
  mutable std::atomic<bool> out_of_memory_ = false;
  bool one_allocation_;
  const StateDict* tensors_ = nullptr;
  // Changed while storages are added and get their memory, which one thread does.
  mutable Lanes lanes_;
  mutable std::vector<Target> targets_;
};

std::unique_ptr<Targets> new_targets(bool use_pinmem, bool one_allocation);

}  // namespace veturboio::core
