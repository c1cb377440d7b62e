// What tests control and ask: the operators torch.ops.sim, which tests/python/accelerator.py wraps.
#include <torch/library.h>

#include "state.h"
#include "streams.h"

namespace sim {
namespace {

std::string stats() {
  const std::lock_guard lock(mutex());
  return statistics().json();
}

void reset_stats() {
  const std::lock_guard lock(mutex());
  statistics().reset();
}

void set_bandwidth(double to_device, double to_host) {
  TORCH_CHECK_VALUE(to_device >= 0 && to_host >= 0, "a bandwidth is negative");
  const std::lock_guard lock(mutex());
  settings().bandwidth = {to_device, to_host};
}

void set_latency(std::int64_t us) {
  TORCH_CHECK_VALUE(us >= 0, "the latency is negative");
  const std::lock_guard lock(mutex());
  settings().latency_us = us;
}

void set_random_delay(std::int64_t us, std::int64_t seed) {
  TORCH_CHECK_VALUE(us >= 0, "the delay is negative");
  const std::lock_guard lock(mutex());
  settings().random_delay_us = us;
  settings().seed = seed;
}

void set_memory_limit(std::int64_t device, std::int64_t bytes) {
  TORCH_CHECK_VALUE(device >= 0 && device < kDevices, "there is no device ", device);
  const std::lock_guard lock(mutex());
  settings().memory_limit.at(device) = bytes;
}

void fail_after(const std::string& kind, std::int64_t calls) {
  TORCH_CHECK_VALUE(calls == -1 || calls >= 1, "calls are counted from 1");
  const std::lock_guard lock(mutex());
  countdowns().at(fault_by_name(kind)) = std::max<std::int64_t>(calls, 0);
}

// In the order of the setters and their arguments.
std::tuple<double, double, std::int64_t, std::int64_t, std::int64_t, std::vector<std::int64_t>>
get_settings() {
  const std::lock_guard lock(mutex());
  const auto& set = settings();
  return {set.bandwidth[kToDevice],
          set.bandwidth[kToHost],
          set.latency_us,
          set.random_delay_us,
          set.seed,
          {set.memory_limit.begin(), set.memory_limit.end()}};
}

// The countdown of each kind, -1 for those that are off.
std::vector<std::int64_t> get_faults() {
  const std::lock_guard lock(mutex());
  std::vector<std::int64_t> left;
  for (const auto calls : countdowns()) {
    left.push_back(calls == 0 ? -1 : calls);
  }
  return left;
}

void reset() {
  const std::lock_guard lock(mutex());
  failures() = {};
  countdowns() = {};
}

// Waits for everything, and does not say what failed.
void drain() {
  check_not_forked();
  for (int device = 0; device < kDevices; ++device) {
    wait_for_device(device);
  }
}

// torch gives them to C++ only.
c10::Stream pooled(std::int64_t device) {
  TORCH_CHECK_VALUE(device >= 0 && device < kDevices, "there is no device ", device);
  return stream_of(pooled_stream(static_cast<int>(device)));
}

// To be called before the interpreter takes apart what streams may still use.
void shut_down() {
  if (!forked()) {
    stop_sleeping();
    drain();
  }
}

TORCH_LIBRARY(sim, m) {
  m.def("stats() -> str", stats);
  m.def("reset_stats() -> ()", reset_stats);
  m.def("set_bandwidth(float to_device, float to_host) -> ()", set_bandwidth);
  m.def("set_latency(int us) -> ()", set_latency);
  m.def("set_random_delay(int us, int seed) -> ()", set_random_delay);
  m.def("set_memory_limit(int device, int bytes) -> ()", set_memory_limit);
  m.def("fail_after(str kind, int calls) -> ()", fail_after);
  m.def("get_settings() -> (float, float, int, int, int, int[])", get_settings);
  m.def("get_faults() -> int[]", get_faults);
  m.def("reset() -> ()", reset);
  m.def("drain() -> ()", drain);
  m.def("pooled_stream(int device) -> Stream", pooled);
  m.def("shut_down() -> ()", shut_down);
}

}  // namespace
}  // namespace sim
