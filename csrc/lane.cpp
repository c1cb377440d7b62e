#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "veturboio/csrc/targets.h"

namespace veturboio::core {
namespace {

// Small enough for the pools that allocators keep, and as much as a copy needs to be worth it.
constexpr std::int64_t kScratchBytes = 1 << 20;

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

}  // namespace

Lane::Lane(c10::Device device) : device_(device) {
  if (device.is_cpu()) {
    return;
  }
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

const at::Tensor& Lane::scratch() const {
  if (!scratch_.defined()) {
    scratch_ = at::empty({kScratchBytes}, at::TensorOptions(device_).dtype(at::kByte));
  }
  return scratch_;
}

void Copies::wait() const {
  for (const c10::Event& event : events_) {
    event.synchronize();
  }
}

}  // namespace veturboio::core
