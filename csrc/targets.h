// Storages of a load on devices, and the streams that fill them. Written against c10's interfaces
// alone, so that whatever device torch knows is served by the same code.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Event.h>
#include <c10/core/Storage.h>
#include <c10/core/Stream.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "rust/cxx.h"

namespace veturboio::core {

class StateDict;
struct Allocation;
struct PartSpec;
struct TargetSpec;

// Host memory of a device's own allocator.
class HostBytes {
 public:
  explicit HostBytes(c10::DataPtr bytes) : bytes_(std::move(bytes)) {}
  std::uint8_t* data() const { return static_cast<std::uint8_t*>(bytes_.get()); }

 private:
  c10::DataPtr bytes_;
};

// Copies out of one segment, which are done when these events are.
class Copies {
 public:
  explicit Copies(std::vector<c10::Event> events) : events_(std::move(events)) {}
  void wait() const;

 private:
  std::vector<c10::Event> events_;
};

// One device of a load.
class Lane {
 public:
  explicit Lane(c10::Device device);

  c10::Device device() const { return device_; }

  // Whether copies can go on by themselves.
  bool is_async() const { return stream_.has_value(); }

  // What follows on this lane comes after what is under way on the caller's current stream.
  void begin() const;

  // An event at the end of what is under way.
  c10::Event mark() const;

  // Waits for all that is under way.
  void wait() const;

  // The stream of the lane; only if it is asynchronous.
  const c10::Stream& stream() const { return *stream_; }

  // Memory on the device that small tensors pass through, and what is to be converted. Whoever
  // has the lock puts copies to it and from it on the stream together.
  std::mutex& scratching() const { return scratching_; }
  const at::Tensor& scratch() const;

 private:
  c10::Device device_;
  std::optional<c10::Stream> stream_;
  mutable std::mutex scratching_;
  mutable at::Tensor scratch_;
};

class Targets {
 public:
  Targets(bool use_pinmem, bool one_allocation)
      : use_pinmem_(use_pinmem), one_allocation_(one_allocation) {}

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

  const Lane& lane(c10::Device device) const;
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
  bool one_allocation_;
  const StateDict* tensors_ = nullptr;
  // Changed while storages are added and get their memory, which one thread does.
  mutable std::vector<std::unique_ptr<Lane>> lanes_;
  mutable std::vector<Target> targets_;
};

std::unique_ptr<Targets> new_targets(bool use_pinmem, bool one_allocation);

}  // namespace veturboio::core
