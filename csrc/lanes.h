// The devices of one load or save: a stream of their own, and host memory that they reach. Written
// against c10's interfaces alone, so that whatever device torch knows is served by the same code.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace veturboio::core {

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
  void settle() const noexcept;  // the same, as Lanes says

  // The stream of the lane; only if it is asynchronous.
  const c10::Stream& stream() const { return *stream_; }

  // Whether the device has room for scratch memory.
  bool has_scratch() const;

 private:
  c10::Device device_;
  std::optional<c10::Stream> stream_;

  friend class Scratch;
  mutable std::mutex mutex_;  // of the next one
  mutable bool is_scratch_taken_ = false;
  mutable std::condition_variable scratch_released_;
  mutable at::Tensor scratch_;  // whoever has taken it may use it
};

// Memory on the device of a lane that small tensors pass through, and what is to be converted. One
// thread has it at a time, and puts copies to it and from it on the stream together. It holds no
// lock meanwhile: a device may be implemented in Python.
class Scratch {
 public:
  // Waits for the thread that has it. Throws where the device has no room for it.
  explicit Scratch(const Lane& lane);

  const at::Tensor& bytes() const { return lane_.scratch_; }

 private:
  // Takes it and gives it back, whether there is memory or not.
  class Turn {
   public:
    explicit Turn(const Lane& lane);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    const Lane& lane_;
  };

  const Lane& lane_;
  const Turn turn_;
};

// The lanes of a load or save. They are found on one thread, and used by any.
class Lanes {
 public:
  // The lane of a device. Throws where there is no such device.
  const Lane& of(c10::Device device);

  // The same, if it was asked for before.
  const Lane* find(const c10::Device& device) const;

  // The kind of device whose host memory is worth having: the first that copies by itself and has
  // an allocator for such memory; -1 if there is none.
  std::int8_t pinned_kind() const;

  void begin() const;
  void wait() const;

  // Waits whatever becomes of it: what went wrong first is being reported, and a device that fails
  // now copies nothing more.
  void settle() const noexcept;

 private:
  std::vector<std::unique_ptr<Lane>> lanes_;
};

std::unique_ptr<HostBytes> host_bytes(std::int8_t kind, std::size_t len);

}  // namespace veturboio::core
