#include "state.h"

#include <c10/util/Exception.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <sstream>

namespace sim {
namespace {

constexpr std::array<const char*, kFaults> kFaultNames{"alloc",  "pin",         "copy",
                                                       "record", "synchronize", "late"};
constexpr std::array<const char*, kWires> kWireNames{"h2d", "d2h", "d2d"};
constexpr std::array<const char*, kViolations> kViolationNames{
    "device_freed_in_use", "pinned_freed_in_use", "use_of_freed"};
constexpr std::size_t kMessages = 20;

bool exiting = false;
std::atomic<bool> is_fork{false};
const int watch_forks = pthread_atfork(nullptr, nullptr, [] { is_fork = true; });

void write(std::ostream& out, const Amount& amount) {
  out << "{\"now\": " << amount.now << ", \"peak\": " << amount.peak
      << ", \"live\": " << amount.live << ", \"ever\": " << amount.ever << "}";
}

void write(std::ostream& out, const Traffic& traffic) {
  out << "{\"copies\": " << traffic.copies << ", \"bytes\": " << traffic.bytes
      << ", \"async\": " << traffic.asynchronous << ", \"sync\": " << traffic.synchronous
      << ", \"largest\": " << traffic.largest << ", \"smallest\": " << traffic.smallest
      << ", \"busy\": " << traffic.busy << "}";
}

// Notified when the process ends, and then only: what is done elsewhere should wake no sleeper.
std::condition_variable& ended() {
  static auto& one = *new std::condition_variable();
  return one;
}

}  // namespace

// What is made here is never destroyed: threads of streams outlive main.

std::mutex& mutex() {
  static auto& one = *new std::mutex();
  return one;
}

std::condition_variable& changed() {
  static auto& one = *new std::condition_variable();
  return one;
}

Settings& settings() {
  static auto& one = *new Settings();
  return one;
}

Statistics& statistics() {
  static auto& one = *new Statistics();
  return one;
}

std::array<std::int64_t, kFaults>& countdowns() {
  static auto& one = *new std::array<std::int64_t, kFaults>();
  return one;
}

std::array<std::string, kDevices>& failures() {
  static auto& one = *new std::array<std::string, kDevices>();
  return one;
}

Fault fault_by_name(const std::string& name) {
  const auto found = std::find(kFaultNames.begin(), kFaultNames.end(), name);
  TORCH_CHECK_VALUE(found != kFaultNames.end(), "nothing called \"", name, "\" can fail");
  return static_cast<Fault>(found - kFaultNames.begin());
}

const char* name_of(Fault fault) { return kFaultNames.at(fault); }

bool strikes(Fault fault) {
  auto& left = countdowns().at(fault);
  return left > 0 && --left == 0;
}

void maybe_fail(Fault fault) {
  TORCH_CHECK(!strikes(fault), "simulated ", name_of(fault), " failure");
}

void check_healthy(int device) {
  TORCH_CHECK(failures().at(device).empty(), failures().at(device));
}

void Amount::add(std::int64_t bytes) {
  now += bytes;
  peak = std::max(peak, now);
  ++live;
  ++ever;
}

void Amount::remove(std::int64_t bytes) {
  now -= bytes;
  --live;
}

void Amount::reset() {
  peak = now;
  ever = 0;
}

void Traffic::add(std::int64_t size, bool asynchronously) {
  smallest = copies == 0 ? size : std::min(smallest, size);
  largest = std::max(largest, size);
  ++copies;
  bytes += size;
  ++(asynchronously ? asynchronous : synchronous);
}

void Statistics::violated(Violation violation, std::string message) {
  ++violations.at(violation);
  if (messages.size() < kMessages) {
    messages.push_back(std::move(message));
  }
}

void Statistics::reset() {
  Statistics fresh;
  fresh.device = device;
  fresh.pinned = pinned;
  for (auto& amount : fresh.device) {
    amount.reset();
  }
  fresh.pinned.reset();
  *this = std::move(fresh);
}

std::string Statistics::json() const {
  std::ostringstream out;
  out << "{\"device\": [";
  for (int index = 0; index < kDevices; ++index) {
    out << (index > 0 ? ", " : "");
    write(out, device.at(index));
  }
  out << "], \"pinned\": ";
  write(out, pinned);
  for (int wire = 0; wire < kWires; ++wire) {
    out << ", \"" << kWireNames.at(wire) << "\": ";
    write(out, traffic.at(wire));
  }
  std::int64_t sum = 0;
  for (int kind = 0; kind < kViolations; ++kind) {
    out << ", \"" << kViolationNames.at(kind) << "\": " << violations.at(kind);
    sum += violations.at(kind);
  }
  out << ", \"violations\": " << sum << ", \"messages\": [";
  for (std::size_t index = 0; index < messages.size(); ++index) {
    out << (index > 0 ? ", " : "") << '"' << messages[index] << '"';
  }
  out << "], \"streams\": [";
  for (int index = 0; index < kDevices; ++index) {
    out << (index > 0 ? ", " : "") << std::count_if(streams.begin(), streams.end(), [&](Key key) {
      return key.first == index;
    });
  }
  out << "], \"max_queue\": " << max_queue << "}";
  return out.str();
}

void sleep_until(Instant end) {
  std::unique_lock lock(mutex());
  ended().wait_until(lock, end, [] { return exiting; });
}

void stop_sleeping() {
  const std::lock_guard lock(mutex());
  exiting = true;
  ended().notify_all();
}

bool forked() { return is_fork; }

void check_not_forked() {
  TORCH_CHECK(!forked(), "the simulated accelerator cannot be used in a forked process");
}

}  // namespace sim
