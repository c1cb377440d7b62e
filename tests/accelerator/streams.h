// Streams: queues of tasks, each carried out in order on a thread of its own.
#pragma once

#include <deque>
#include <exception>
#include <functional>
#include <memory>

#include "memory.h"
#include "state.h"

namespace sim {

constexpr c10::StreamId kDefaultStream = 0;
constexpr c10::StreamId kPooledStreams = 8;  // per device, with the numbers from 1

// Up to which task of each stream what one stream does next is known to come after.
using Order = std::map<Key, std::uint64_t>;

// What is left of a task for those who wait for it. Guarded by mutex().
struct Ticket {
  Key stream;
  bool done = false;
  Instant at;  // when it was done
  std::exception_ptr error;
  Order order;
};
using TicketPtr = std::shared_ptr<Ticket>;

// What a task does. It takes the time when it may start, which lies a little in the past when the
// stream is busy, and returns the time when it ended by the settings: what the simulation itself
// costs is no part of what it simulates.
using Work = std::function<Instant(Instant)>;

struct Task {
  Work work;                   // may be missing
  std::vector<BlockPtr> uses;  // memory that it reads or writes
  TicketPtr after;             // a task of another stream that must be done before
  bool awaited = false;        // someone waits for it, and is told of its error
};

// Adds a task to a stream, behind all others. To be called with mutex() held.
TicketPtr enqueue(Key stream, Task task);

// Waits until a task is done, and throws its error, if it is an awaited one.
void wait(const TicketPtr& ticket);

// Waits until everything is done that a stream, or a device, was given so far.
void wait_for_stream(Key stream);
void wait_for_device(int device);
bool idle(Key stream);

// Whether the next task of `later` is known to come after `task` of `earlier`. With mutex() held.
bool comes_after(Key later, Key earlier, std::uint64_t task);

// The number of the newest task of a stream. With mutex() held.
std::uint64_t newest(Key stream);

Key pooled_stream(int device);
Key new_stream(int device);
// The stream that this thread works on.
Key current_stream(int device);
Key exchange_stream(Key stream);
int current_device();
int exchange_device(int device);

Key key_of(const c10::Stream& stream);
c10::Stream stream_of(Key key);

}  // namespace sim
