// What the parts of the simulated accelerator share: one lock, settings, faults and counters.
#pragma once

#include <c10/core/Stream.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace sim {

constexpr int kDevices = 2;

using Instant = std::chrono::steady_clock::time_point;

// One lock guards all that is changed by more than one thread. Tasks are carried out outside it.
std::mutex& mutex();

// Notified when a task is done.
std::condition_variable& changed();

// A stream, by its device and its number there.
using Key = std::pair<int, c10::StreamId>;

// The two wires of a device, and what never leaves it.
enum Wire { kToDevice, kToHost, kWithin, kWires };

// Everything below is guarded by mutex().

struct Settings {
  std::array<double, 2> bandwidth{};  // bytes a second, by wire; 0 is unlimited
  std::int64_t latency_us = 10;       // of each copy over a wire
  std::int64_t random_delay_us = 200;
  std::int64_t seed = 0;
  std::array<std::int64_t, kDevices> memory_limit{-1, -1};  // bytes; -1 is none
};
Settings& settings();

// The calls that can be made to fail.
enum Fault { kAlloc, kPin, kCopy, kRecord, kSynchronize, kLate, kFaults };
Fault fault_by_name(const std::string& name);
const char* name_of(Fault fault);

// How many calls of each kind there are until one fails; 0 is off.
std::array<std::int64_t, kFaults>& countdowns();

// Whether this call of that kind is the one that fails.
bool strikes(Fault fault);

// Throws if this call of that kind is the one that fails.
void maybe_fail(Fault fault);

// What went wrong on a device while nobody waited. It stays, as a broken context does.
std::array<std::string, kDevices>& failures();
void check_healthy(int device);

struct Amount {
  std::int64_t now = 0, peak = 0, live = 0, ever = 0;

  void add(std::int64_t bytes);
  void remove(std::int64_t bytes);
  void reset();
};

struct Traffic {
  std::int64_t copies = 0, bytes = 0, asynchronous = 0, synchronous = 0;
  std::int64_t largest = 0, smallest = 0;
  double busy = 0;  // seconds that the wire was held

  void add(std::int64_t bytes, bool asynchronously);
};

enum Violation { kDeviceFreedInUse, kPinnedFreedInUse, kUseOfFreed, kViolations };

struct Statistics {
  std::array<Amount, kDevices> device;
  Amount pinned;
  std::array<Traffic, kWires> traffic;
  std::array<std::int64_t, kViolations> violations{};
  std::vector<std::string> messages;  // of the first violations
  std::set<Key> streams;              // that were given work
  std::int64_t max_queue = 0;

  void violated(Violation violation, std::string message);
  void reset();
  std::string json() const;
};
Statistics& statistics();

// Sleeps, but no longer than the process lives.
void sleep_until(Instant end);

// Makes all sleeping end at once, now and later: the process is about to exit.
void stop_sleeping();

// Whether this process was forked from one that had the accelerator: its threads are not here.
bool forked();
void check_not_forked();

}  // namespace sim
