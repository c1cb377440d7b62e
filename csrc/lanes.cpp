#include "veturboio/csrc/lanes.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>

namespace veturboio::core {
namespace {

// Small enough for the pools that allocators keep, and as much as a copy needs to be worth it.
constexpr std::int64_t kScratchBytes = 1 << 20;

// How often a device is asked to wait before its word is given up on.
constexpr int kTries = 3;

// The device with a number of its own, if there is such a device.
c10::Device resolved(c10::Device device, const c10::impl::VirtualGuardImpl& devices) {
  const c10::DeviceIndex count = devices.deviceCount();
  if (!device.has_index() && count > 0) {
    device.set_index(devices.getDevice().index());
  }
  TORCH_CHECK(device.has_index() && device.index() < count, "there is no device ", device,
              ": torch finds ", static_cast<int>(count), " of this type");
  return device;
}

c10::Allocator* pinned_allocator(c10::DeviceType type) {
  return at::globalContext().getAcceleratorHooksInterface(type).getPinnedMemoryAllocator();
}

}  // namespace

Lane::Lane(c10::Device device) : device_(device) {
  if (device.is_cpu()) {
    return;
  }
  TORCH_CHECK(c10::impl::hasDeviceGuardImpl(device.type()), "there is no device ", device,
              ": torch has none of this type");
  const c10::impl::VirtualGuardImpl devices(device.type());
  device_ = resolved(device, devices);
  try {
    stream_ = devices.getStreamFromGlobalPool(device_);
  } catch (const c10::Error&) {
    // A type of device that has no streams to give: each copy is waited for.
  }
}

void Lane::begin() const {
  if (!is_async()) {
    return;
  }
  const c10::impl::VirtualGuardImpl devices(device_.type());
  c10::Event event(device_.type());
  event.record(devices.getStream(device_));
  event.block(*stream_);
}

c10::Event Lane::mark() const {
  c10::Event event(device_.type());
  event.record(*stream_);
  return event;
}

void Lane::wait() const {
  if (is_async()) {
    stream_->synchronize();
  }
}

void Lane::settle() const noexcept {
  for (int tries = 0; tries < kTries; ++tries) {
    try {
      return wait();
    } catch (const std::exception&) {
    }
  }
}

bool Lane::has_scratch() const {
  try {
    return Scratch(*this).bytes().defined();
  } catch (const c10::OutOfMemoryError&) {
    return false;
  }
}

Scratch::Turn::Turn(const Lane& lane) : lane_(lane) {
  std::unique_lock<std::mutex> lock(lane.mutex_);
  lane.scratch_released_.wait(lock, [&] { return !lane.is_scratch_taken_; });
  lane.is_scratch_taken_ = true;
}

Scratch::Turn::~Turn() {
  {
    const std::lock_guard<std::mutex> lock(lane_.mutex_);
    lane_.is_scratch_taken_ = false;
  }
  lane_.scratch_released_.notify_one();
}

Scratch::Scratch(const Lane& lane) : lane_(lane), turn_(lane) {
  if (!lane.scratch_.defined()) {
    lane.scratch_ = at::empty({kScratchBytes}, at::TensorOptions(lane.device()).dtype(at::kByte));
  }
}

void Copies::wait() const {
  for (const c10::Event& event : events_) {
    event.synchronize();
  }
}

const Lane* Lanes::find(const c10::Device& device) const {
  const auto found = std::find_if(lanes_.begin(), lanes_.end(),
                                  [&](const auto& lane) { return lane->device() == device; });
  return found == lanes_.end() ? nullptr : found->get();
}

const Lane& Lanes::of(c10::Device device) {
  if (const Lane* const known = find(device)) {
    return *known;
  }
  auto made = std::make_unique<Lane>(device);
  // The current device of its type may have been named by its number before.
  if (const Lane* const known = find(made->device())) {
    return *known;
  }
  lanes_.push_back(std::move(made));
  return *lanes_.back();
}

std::int8_t Lanes::pinned_kind() const {
  for (const auto& lane : lanes_) {
    try {
      if (lane->is_async() && pinned_allocator(lane->device().type()) != nullptr) {
        return static_cast<std::int8_t>(lane->device().type());
      }
    } catch (const c10::Error&) {
      // A type of device that has no such memory.
    }
  }
  return -1;
}

void Lanes::begin() const {
  for (const auto& lane : lanes_) {
    lane->begin();
  }
}

void Lanes::wait() const {
  for (const auto& lane : lanes_) {
    lane->wait();
  }
}

void Lanes::settle() const noexcept {
  for (const auto& lane : lanes_) {
    lane->settle();
  }
}

std::unique_ptr<HostBytes> host_bytes(std::int8_t kind, std::size_t len) {
  c10::Allocator* const allocator = pinned_allocator(static_cast<c10::DeviceType>(kind));
  return std::make_unique<HostBytes>(allocator->allocate(len));
}

}  // namespace veturboio::core
