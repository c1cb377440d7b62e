// What torch asks of a backend: devices, streams and events by number, and the hooks of an
// accelerator.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>

#include "copies.h"
#include "streams.h"

namespace sim {
namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;

c10::Device device_at(int index) { return {kType, static_cast<c10::DeviceIndex>(index)}; }

int index_of(c10::Device device) { return device.has_index() ? device.index() : current_device(); }

// An event stands for the newest task that it was recorded as. Guarded by mutex().
struct Event {
  TicketPtr newest;
};

TicketPtr newest_of(void* event) {
  const std::lock_guard lock(mutex());
  return static_cast<Event*>(event)->newest;
}

void begin_synchronize() {
  check_not_forked();
  const std::lock_guard lock(mutex());
  maybe_fail(kSynchronize);
}

void end_synchronize(int device) {
  const std::lock_guard lock(mutex());
  check_healthy(device);
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kType; }

  c10::Device exchangeDevice(c10::Device device) const override {
    return device_at(exchange_device(index_of(device)));
  }
  c10::Device getDevice() const override { return device_at(current_device()); }
  void setDevice(c10::Device device) const override { exchange_device(index_of(device)); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    exchange_device(index_of(device));
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  c10::DeviceCapability getDeviceCapability(c10::Device /*device*/) const override { return {}; }

  c10::Stream getStream(c10::Device device) const override {
    return stream_of(current_stream(index_of(device)));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return stream_of({index_of(device), kDefaultStream});
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool /*high*/) const override {
    return stream_of(pooled_stream(index_of(device)));
  }
  c10::Stream getNewStream(c10::Device device, int /*priority*/) const override {
    return stream_of(new_stream(index_of(device)));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return stream_of(exchange_stream(key_of(stream)));
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex /*device*/,
              const c10::EventFlag /*flag*/) const override {
    check_not_forked();
    const std::lock_guard lock(mutex());
    maybe_fail(kRecord);
    if (*event == nullptr) {
      *event = new Event();
    }
    static_cast<Event*>(*event)->newest = enqueue(key_of(stream), {});
  }

  void block(void* event, const c10::Stream& stream) const override {
    check_not_forked();
    const std::lock_guard lock(mutex());
    Task task;
    task.after = static_cast<Event*>(event)->newest;
    enqueue(key_of(stream), std::move(task));
  }

  bool queryEvent(void* event) const override {
    const std::lock_guard lock(mutex());
    const auto& ticket = static_cast<Event*>(event)->newest;
    check_healthy(ticket->stream.first);
    return ticket->done;
  }

  void synchronizeEvent(void* event) const override {
    begin_synchronize();
    const auto ticket = newest_of(event);
    wait(ticket);
    end_synchronize(ticket->stream.first);
  }

  void destroyEvent(void* event, const c10::DeviceIndex /*device*/) const noexcept override {
    delete static_cast<Event*>(event);
  }

  double elapsedTime(void* from, void* to, const c10::DeviceIndex /*device*/) const override {
    const auto start = newest_of(from);
    const auto end = newest_of(to);
    const std::lock_guard lock(mutex());
    return std::chrono::duration<double, std::milli>(end->at - start->at).count();
  }

  bool queryStream(const c10::Stream& stream) const override {
    const bool done = idle(key_of(stream));
    end_synchronize(stream.device_index());
    return done;
  }

  void synchronizeStream(const c10::Stream& stream) const override {
    begin_synchronize();
    wait_for_stream(key_of(stream));
    end_synchronize(stream.device_index());
  }

  void synchronizeDevice(const c10::DeviceIndex device) const override {
    begin_synchronize();
    const int index = device < 0 ? current_device() : device;
    wait_for_device(index);
    end_synchronize(index);
  }

  void recordDataPtrOnStream(const c10::DataPtr& pointer,
                             const c10::Stream& stream) const override {
    device_allocator().recordStream(pointer, stream);
  }
};

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex device) const override {
    return device >= 0 && device < kDevices;
  }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  void setCurrentDevice(c10::DeviceIndex device) const override { exchange_device(device); }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(current_device());
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return static_cast<c10::DeviceIndex>(exchange_device(device));
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return exchangeDevice(device);
  }

  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator(); }
  bool isPinnedPtr(const void* data) const override {
    if (forked()) {
      return false;
    }
    const std::lock_guard lock(mutex());
    return pinned_block(data, 1) != nullptr;
  }
  c10::Device getDeviceFromPtr(void* data) const override {
    const int device = device_of(data);
    TORCH_CHECK(device >= 0, data, " lies on no simulated device");
    return device_at(device);
  }

  // Whatever needs random numbers is computed by the host.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex /*device*/) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex /*device*/) const override {
    return at::detail::createCPUGenerator();
  }

  void resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t size) const override;
};

void Hooks::resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t size) const {
  auto* const impl = storage.unsafeGetStorageImpl();
  TORCH_CHECK(impl->resizable(), "this storage cannot be resized");
  const c10::DeviceGuard guard(storage.device());
  auto memory = device_allocator().allocate(size);
  copy_bytes(memory.get(), storage.data(), std::min(size, impl->nbytes()));
  impl->set_data_ptr_noswap(std::move(memory));
  impl->set_nbytes(size);
}

// Never destroyed: torch uses them to the very end.
const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  c10::SetAllocator(kType, &device_allocator());
  at::setHostAllocator(kType, &pinned_allocator());
  return true;
}();

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace sim
