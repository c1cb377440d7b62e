// Memory of the devices, which the host cannot touch, and pinned memory of the host.
#pragma once

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <memory>
#include <shared_mutex>

#include "state.h"

namespace sim {

// One allocation. It lives until it was freed and no task of a stream uses it any more.
class Block {
 public:
  // Memory of a device, or pinned memory if `device` is negative.
  Block(std::size_t size, int device, Key home);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Where the threads of the streams find what others know by `address`.
  char* real(const void* known_as) const;
  // Destroys the content, so that whoever still reads it gets wrong data.
  void poison();
  // A task is done. With mutex() held.
  void release(Key stream, std::uint64_t task);

  const std::size_t size;
  const int device;
  const Key home;  // the stream that was current when it was allocated
  char* address = nullptr;

  // Tasks that are not done. Guarded by mutex().
  std::vector<std::pair<Key, std::uint64_t>> uses;
  // Streams that the allocator was told of, with the last task that it was told of.
  std::map<Key, std::uint64_t> recorded;

  // Held, shared, by whoever copies from or to it; poison() must not come in between.
  std::shared_mutex content;

 private:
  char* real_ = nullptr;
  std::size_t mapped_ = 0;
};
using BlockPtr = std::shared_ptr<Block>;

// The device block that holds this range. Throws, and counts a violation, if the range is freed or
// was never allocated. With mutex() held.
BlockPtr device_block(const void* address, std::size_t bytes);

// The pinned block that holds this range, or none. With mutex() held.
BlockPtr pinned_block(const void* address, std::size_t bytes);

// The device on which an address lies, or -1.
int device_of(const void* address);

c10::DeviceAllocator& device_allocator();
at::HostAllocator& pinned_allocator();

}  // namespace sim
