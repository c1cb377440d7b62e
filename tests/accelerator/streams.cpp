#include "streams.h"

#include <c10/util/Exception.h>

#include <thread>

namespace sim {
namespace {

// A thread without work ends after this time. Another is started when work comes.
constexpr std::chrono::milliseconds kIdle{200};

struct Numbered {
  Task task;
  TicketPtr ticket;
  std::uint64_t number;
  Instant enqueued;
};

struct Queue {
  std::deque<Numbered> waiting;
  std::condition_variable filled;
  std::uint64_t last = 0;  // number of the task that was added last
  std::uint64_t done = 0;
  Order order;
  Instant ready;  // when it ended what it did last
  bool running = false;
};

// Guarded by mutex(); a queue stays where it is for ever.
std::map<Key, Queue>& queues() {
  static auto& one = *new std::map<Key, Queue>();
  return one;
}

thread_local int device_of_thread = 0;
thread_local std::array<c10::StreamId, kDevices> stream_of_thread{};

// An error of a task for which nobody waits is one of the device.
std::exception_ptr perform(const Work& work, Instant& moment) {
  try {
    moment = work(moment);
    return nullptr;
  } catch (...) {
    return std::current_exception();
  }
}

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const c10::Error& failure) {
    return failure.what_without_backtrace();
  } catch (const std::exception& failure) {
    return failure.what();
  }
}

void carry_out(Key stream, Queue& queue) {
  std::unique_lock lock(mutex());
  while (queue.filled.wait_for(lock, kIdle, [&] { return !queue.waiting.empty(); })) {
    Numbered next = std::move(queue.waiting.front());
    queue.waiting.pop_front();
    Instant moment = std::max(next.enqueued, queue.ready);
    if (next.task.after) {
      changed().wait(lock, [&] { return next.task.after->done; });
      moment = std::max(moment, next.task.after->at);
    }
    std::exception_ptr error;
    if (next.task.work) {
      lock.unlock();
      error = perform(next.task.work, moment);
      lock.lock();
    }
    if (error && next.task.awaited) {
      next.ticket->error = error;
    } else if (error && failures().at(stream.first).empty()) {
      failures().at(stream.first) = text_of(error);
    }
    queue.ready = next.ticket->at = moment;
    queue.done = next.number;
    next.ticket->done = true;
    for (const auto& block : next.task.uses) {
      block->release(stream, next.number);
    }
    changed().notify_all();
    // The last to use memory gives it back to the system, which takes its time.
    lock.unlock();
    next = {};
    lock.lock();
  }
  queue.running = false;
}

}  // namespace

TicketPtr enqueue(Key stream, Task task) {
  auto& queue = queues()[stream];
  Numbered next{std::move(task), std::make_shared<Ticket>(), ++queue.last,
                std::chrono::steady_clock::now()};
  if (next.task.after) {
    const auto& before = *next.task.after;
    for (const auto& [other, number] : before.order) {
      auto& known = queue.order[other];
      known = std::max(known, number);
    }
  }
  queue.order[stream] = next.number;
  next.ticket->stream = stream;
  next.ticket->order = queue.order;
  for (const auto& block : next.task.uses) {
    block->uses.emplace_back(stream, next.number);
  }
  auto ticket = next.ticket;
  queue.waiting.push_back(std::move(next));
  auto& counted = statistics();
  counted.streams.insert(stream);
  counted.max_queue =
      std::max(counted.max_queue, static_cast<std::int64_t>(queue.last - queue.done));
  if (!queue.running) {
    queue.running = true;
    std::thread(carry_out, stream, std::ref(queue)).detach();
  }
  queue.filled.notify_one();
  return ticket;
}

void wait(const TicketPtr& ticket) {
  std::unique_lock lock(mutex());
  changed().wait(lock, [&] { return ticket->done; });
  if (ticket->error) {
    std::rethrow_exception(ticket->error);
  }
}

void wait_for_stream(Key stream) {
  std::unique_lock lock(mutex());
  auto& queue = queues()[stream];
  changed().wait(lock, [&, last = queue.last] { return queue.done >= last; });
}

void wait_for_device(int device) {
  std::unique_lock lock(mutex());
  std::vector<std::pair<Queue*, std::uint64_t>> all;
  for (auto& [stream, queue] : queues()) {
    if (stream.first == device) {
      all.emplace_back(&queue, queue.last);
    }
  }
  for (const auto& [queue, last] : all) {
    changed().wait(lock, [&, queue = queue, last = last] { return queue->done >= last; });
  }
}

bool idle(Key stream) {
  const std::lock_guard lock(mutex());
  const auto& queue = queues()[stream];
  return queue.done == queue.last;
}

bool comes_after(Key later, Key earlier, std::uint64_t task) {
  const auto& order = queues()[later].order;
  const auto known = order.find(earlier);
  return known != order.end() && known->second >= task;
}

std::uint64_t newest(Key stream) { return queues()[stream].last; }

Key pooled_stream(int device) {
  static auto& next = *new std::array<c10::StreamId, kDevices>();
  const std::lock_guard lock(mutex());
  return {device, 1 + next.at(device)++ % kPooledStreams};
}

Key new_stream(int device) {
  static c10::StreamId next = kPooledStreams + 1;
  const std::lock_guard lock(mutex());
  return {device, next++};
}

Key current_stream(int device) { return {device, stream_of_thread.at(device)}; }

Key exchange_stream(Key stream) {
  return {stream.first, std::exchange(stream_of_thread.at(stream.first), stream.second)};
}

int current_device() { return device_of_thread; }

int exchange_device(int device) {
  TORCH_CHECK(device >= 0 && device < kDevices, "there is no device ", device);
  return std::exchange(device_of_thread, device);
}

Key key_of(const c10::Stream& stream) { return {stream.device_index(), stream.id()}; }

c10::Stream stream_of(Key key) {
  const c10::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(key.first));
  return c10::Stream(c10::Stream::UNSAFE, device, key.second);
}

}  // namespace sim
