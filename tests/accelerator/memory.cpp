#include "memory.h"

#include <c10/util/Exception.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "copies.h"
#include "streams.h"

namespace sim {
namespace {

// Addresses of a device are never used twice, so that one that was freed can be told.
constexpr std::size_t kAddresses = std::size_t{4} << 40;
constexpr int kGarbage = 0xA5;
constexpr int kPoison = 0xDB;
// Larger blocks begin as zeros: filling them with garbage takes longer than most tests.
constexpr std::size_t kFilled = std::size_t{1} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t size) {
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}

void* map(std::size_t size, int protection, int flags) {
  void* const memory = mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

// The addresses of one device. Nothing lies there: whoever reads or writes there dies.
struct Space {
  char* begin = nullptr;
  std::size_t size = kAddresses;
  std::size_t used = 0;

  Space() {
    // Sanitizers leave less room.
    while ((begin = static_cast<char*>(map(size, PROT_NONE, MAP_NORESERVE))) == nullptr) {
      size /= 2;
      TORCH_CHECK(size > 0, "cannot reserve addresses for a simulated device");
    }
  }
  bool holds(const void* address) const { return address >= begin && address < begin + size; }
  char* take(std::size_t bytes) {
    const auto needed = bytes + round_up(1);  // a page between two blocks
    TORCH_CHECK(needed <= size - used, "the addresses of a simulated device are used up");
    used += needed;
    return begin + used - needed;
  }
};

std::array<Space, kDevices>& spaces() {
  static auto& one = *new std::array<Space, kDevices>();
  return one;
}

// What is allocated, by its address. Guarded by mutex().
using Blocks = std::map<const char*, BlockPtr>;
Blocks& device_blocks() {
  static auto& one = *new Blocks();
  return one;
}
Blocks& pinned_blocks() {
  static auto& one = *new Blocks();
  return one;
}

BlockPtr block_around(const Blocks& blocks, const void* address, std::size_t bytes) {
  const auto* first = static_cast<const char*>(address);
  auto found = blocks.upper_bound(first);
  if (found == blocks.begin()) {
    return nullptr;
  }
  const auto& block = (--found)->second;
  return first + bytes <= block->address + block->size ? block : nullptr;
}

BlockPtr take_out(Blocks& blocks, void* address) {
  const auto found = blocks.find(static_cast<const char*>(address));
  TORCH_INTERNAL_ASSERT(found != blocks.end());
  auto block = std::move(found->second);
  blocks.erase(found);
  return block;
}

// Whether a task uses a block that is freed now though nothing keeps the block from being used
// again before the task is done: the stream it belongs to does not come after the task, and the
// allocator was not told of it.
bool endangered(const Block& block, bool has_home) {
  return std::any_of(block.uses.begin(), block.uses.end(), [&](const auto& use) {
    const auto& [stream, task] = use;
    const auto told = block.recorded.find(stream);
    const bool known = told != block.recorded.end() && told->second >= task;
    const bool ordered =
        has_home && (stream == block.home || comes_after(block.home, stream, task));
    return !known && !ordered;
  });
}

std::string describe(const Block& block) {
  return std::to_string(block.size) + " bytes " +
         (block.device < 0 ? "of pinned memory" : "of device " + std::to_string(block.device));
}

void free_device(void* address) {
  if (forked()) {
    return;
  }
  BlockPtr block;  // goes after the lock
  const std::lock_guard lock(mutex());
  block = take_out(device_blocks(), address);
  statistics().device.at(block->device).remove(static_cast<std::int64_t>(block->size));
  // Whatever the streams do until now may be on memory that record_stream was called for.
  for (auto& [stream, task] : block->recorded) {
    task = newest(stream);
  }
  if (endangered(*block, true)) {
    statistics().violated(kDeviceFreedInUse, describe(*block) + " freed in use");
  }
}

void free_pinned(void* address) {
  if (forked()) {
    return;
  }
  BlockPtr block;
  bool stale = false;
  {
    const std::lock_guard lock(mutex());
    block = take_out(pinned_blocks(), address);
    statistics().pinned.remove(static_cast<std::int64_t>(block->size));
    stale = endangered(*block, false);
    if (stale) {
      statistics().violated(kPinnedFreedInUse, describe(*block) + " freed in use");
    }
  }
  if (stale) {
    block->poison();
  }
}

class DeviceAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    check_not_forked();
    const int index = current_device();
    const c10::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index));
    if (size == 0) {  // for which no device is asked
      return {nullptr, nullptr, &free_device, device};
    }
    {
      const std::lock_guard lock(mutex());
      maybe_fail(kAlloc);
      check_fits(index, size);
    }
    auto block = std::make_shared<Block>(size, index, current_stream(index));
    const std::lock_guard lock(mutex());
    check_fits(index, size);
    statistics().device.at(index).add(static_cast<std::int64_t>(size));
    block->address = spaces().at(index).take(round_up(size));
    device_blocks().emplace(block->address, block);
    return {block->address, block->address, &free_device, device};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_device; }

  void copy_data(void* to, const void* from, std::size_t count) const override {
    copy_bytes(to, from, count);
  }

  bool initialized() override { return true; }

  void emptyCache(c10::MempoolId_t /*pool*/) override {}

  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    const std::lock_guard lock(mutex());
    if (const auto block = block_around(device_blocks(), pointer.get(), 0)) {
      block->recorded[key_of(stream)] = 0;
    }
  }

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    const std::lock_guard lock(mutex());
    const auto& amount = statistics().device.at(device);
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* bytes : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes,
                        &stats.requested_bytes}) {
      bytes->at(0).current = amount.now;
      bytes->at(0).peak = amount.peak;
    }
    stats.allocation[0].current = amount.live;
    return stats;
  }

  void resetAccumulatedStats(c10::DeviceIndex /*device*/) override {}

  void resetPeakStats(c10::DeviceIndex device) override {
    const std::lock_guard lock(mutex());
    auto& amount = statistics().device.at(device);
    amount.peak = amount.now;
  }

  std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex device) override {
    const std::lock_guard lock(mutex());
    const auto limit = settings().memory_limit.at(device);
    const auto all = limit < 0 ? kAddresses : static_cast<std::size_t>(limit);
    const auto used = static_cast<std::size_t>(statistics().device.at(device).now);
    return {all > used ? all - used : 0, all};
  }

 private:
  static void check_fits(int device, std::size_t size) {
    const auto limit = settings().memory_limit.at(device);
    const auto now = statistics().device.at(device).now;
    if (limit >= 0 && now + static_cast<std::int64_t>(size) > limit) {
      C10_THROW_ERROR(OutOfMemoryError, c10::str("simulated device ", device, " is out of memory: ",
                                                 now, " bytes are allocated, ", size,
                                                 " are asked for, ", limit, " are there"));
    }
  }
};

class PinnedAllocator final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    check_not_forked();
    if (size == 0) {
      return {nullptr, nullptr, &free_pinned, c10::Device(c10::DeviceType::CPU)};
    }
    {
      const std::lock_guard lock(mutex());
      maybe_fail(kPin);
    }
    auto block = std::make_shared<Block>(size, -1, Key(-1, 0));
    const std::lock_guard lock(mutex());
    statistics().pinned.add(static_cast<std::int64_t>(size));
    pinned_blocks().emplace(block->address, block);
    return {block->address, block->address, &free_pinned, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }

  void copy_data(void* to, const void* from, std::size_t count) const override {
    default_copy_data(to, from, count);
  }

  bool record_event(void* pointer, void* /*context*/, c10::Stream stream) override {
    const std::lock_guard lock(mutex());
    const auto block = pinned_block(pointer, 0);
    if (block) {
      block->recorded[key_of(stream)] = newest(key_of(stream));
    }
    return block != nullptr;
  }

  void empty_cache() override {}

  at::HostStats get_stats() override {
    const std::lock_guard lock(mutex());
    at::HostStats stats;
    for (auto* bytes : {&stats.active_bytes, &stats.allocated_bytes}) {
      bytes->current = statistics().pinned.now;
      bytes->peak = statistics().pinned.peak;
    }
    stats.active_requests.current = statistics().pinned.live;
    return stats;
  }

  void reset_accumulated_stats() override {}

  void reset_peak_stats() override {
    const std::lock_guard lock(mutex());
    statistics().pinned.peak = statistics().pinned.now;
  }
};

}  // namespace

Block::Block(std::size_t bytes, int on, Key stream)
    : size(bytes), device(on), home(stream), mapped_(round_up(bytes)) {
  real_ = static_cast<char*>(map(mapped_, PROT_READ | PROT_WRITE, 0));
  if (real_ == nullptr) {
    C10_THROW_ERROR(OutOfMemoryError, c10::str("there is no memory for ", describe(*this)));
  }
  if (mapped_ >= kHugePage) {
    madvise(real_, mapped_, MADV_HUGEPAGE);
  }
  if (size <= kFilled) {
    std::memset(real_, kGarbage, size);
  }
  address = device < 0 ? real_ : nullptr;
}

Block::~Block() { munmap(real_, mapped_); }

char* Block::real(const void* known_as) const {
  return real_ + (static_cast<const char*>(known_as) - address);
}

void Block::poison() {
  const std::unique_lock lock(content);
  std::memset(real_, kPoison, size);
}

void Block::release(Key stream, std::uint64_t task) { std::erase(uses, std::pair(stream, task)); }

BlockPtr device_block(const void* address, std::size_t bytes) {
  auto block = block_around(device_blocks(), address, bytes);
  if (!block) {
    const auto text = c10::str("illegal access to ", bytes, " bytes of a simulated device at ",
                               address, ", which are not allocated");
    statistics().violated(kUseOfFreed, text);
    TORCH_CHECK(false, text);
  }
  return block;
}

BlockPtr pinned_block(const void* address, std::size_t bytes) {
  return block_around(pinned_blocks(), address, bytes);
}

int device_of(const void* address) {
  for (int device = 0; device < kDevices; ++device) {
    if (spaces().at(device).holds(address)) {
      return device;
    }
  }
  return -1;
}

c10::DeviceAllocator& device_allocator() {
  static auto& one = *new DeviceAllocator();
  return one;
}

at::HostAllocator& pinned_allocator() {
  static auto& one = *new PinnedAllocator();
  return one;
}

}  // namespace sim
