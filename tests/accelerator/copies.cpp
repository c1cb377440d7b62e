#include "copies.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <optional>
#include <shared_mutex>

#include "streams.h"

namespace sim {
namespace {

using std::chrono::duration;
using std::chrono::duration_cast;

// When each wire of each device is free again, in simulated time. Guarded by mutex().
std::array<std::array<Instant, 2>, kDevices>& wires() {
  static auto& one = *new std::array<std::array<Instant, 2>, kDevices>();
  return one;
}

// A tensor that the thread of a stream can read or write. It owns no tensor: a task may be the last
// to hold what it uses, and must not be the one to give it back to Python.
struct View {
  char* data;
  std::vector<std::int64_t> sizes, strides;
  at::ScalarType dtype;
  bool conjugate, negative;
  BlockPtr block;  // none for ordinary memory of the host

  at::Tensor tensor(at::ScalarType as) const {
    return at::from_blob(data, sizes, strides, at::TensorOptions(as));
  }
};

std::size_t extent(const at::Tensor& tensor) {
  return at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize());
}

// With mutex() held.
View view_of(const at::Tensor& tensor, char* data) {
  View view{data,
            tensor.sizes().vec(),
            tensor.strides().vec(),
            tensor.scalar_type(),
            tensor.is_conj(),
            tensor.is_neg(),
            nullptr};
  if (tensor.is_cpu()) {
    view.block = pinned_block(data, extent(tensor));
  } else {
    view.block = device_block(data, extent(tensor));
    view.data = view.block->real(data);
  }
  return view;
}

at::ScalarType bits_of(std::size_t itemsize) {
  switch (itemsize) {
    case 1:
      return at::kByte;
    case 2:
      return at::kShort;
    case 4:
      return at::kInt;
    case 8:
      return at::kLong;
    default:
      return at::kComplexDouble;
  }
}

// What moving needs to know, found out once on the host's thread.
struct Move {
  View to, from;
  std::size_t bytes = 0;
  bool same_bits = false;  // nothing is converted
  bool whole = false;      // both are one run of bytes, in the same order

  // Poisoning must wait for it, and it must see the poison.
  void carry_out() const {
    std::shared_lock<std::shared_mutex> reading, writing;
    if (from.block) {
      reading = std::shared_lock(from.block->content);
    }
    if (to.block && to.block != from.block) {
      writing = std::shared_lock(to.block->content);
    }
    if (whole) {
      std::memmove(to.data, from.data, bytes);
      return;
    }
    const at::NoGradGuard no_grad;
    if (same_bits) {  // which torch copies for every dtype, unlike the dtypes themselves
      const auto bits = bits_of(c10::elementSize(to.dtype));
      to.tensor(bits).copy_(from.tensor(bits));
      return;
    }
    auto source = from.tensor(from.dtype);
    auto target = to.tensor(to.dtype);
    source._set_conj(from.conjugate);
    source._set_neg(from.negative);
    target._set_conj(to.conjugate);
    target._set_neg(to.negative);
    target.copy_(source);
  }
};

// The same numbers that some generator gives for a seed, whichever thread asks first.
std::int64_t random_delay(std::uint64_t number) {
  const auto& set = settings();
  if (set.random_delay_us == 0) {
    return 0;
  }
  std::uint64_t mixed = (static_cast<std::uint64_t>(set.seed) << 32 ^ number) + 0x9E3779B97F4A7C15;
  mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
  mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
  return static_cast<std::int64_t>((mixed ^ mixed >> 31) %
                                   static_cast<std::uint64_t>(set.random_delay_us + 1));
}

// Holds a wire of a device as long as so many bytes take, and returns when it is over.
Instant pass(int device, Wire wire, std::size_t bytes, Instant start) {
  Instant end;
  {
    const std::lock_guard lock(mutex());
    const auto& set = settings();
    duration<double> takes = std::chrono::microseconds(set.latency_us);
    if (set.bandwidth.at(wire) > 0) {
      takes += duration<double>(static_cast<double>(bytes) / set.bandwidth.at(wire));
    }
    auto& free = wires().at(device).at(wire);
    end = std::max(start, free) + duration_cast<Instant::duration>(takes);
    free = end;
    statistics().traffic.at(wire).busy += takes.count();
  }
  sleep_until(end);
  return end;
}

// Between host and device. The bytes are read and written when the time is over, not before: one
// who overwrites the source too early is found out, and so is one who reads the target too early.
Work transfer(Move move, int device, Wire wire, std::int64_t delay_us, bool fails) {
  return [move = std::move(move), device, wire, delay_us, fails](Instant start) {
    const auto begin = start + std::chrono::microseconds(delay_us);
    sleep_until(begin);
    const auto end = pass(device, wire, move.bytes, begin);
    if (fails) {
      const std::lock_guard lock(mutex());
      failures().at(device) = c10::str("simulated ", name_of(kLate), " failure");
    } else {
      move.carry_out();
    }
    return end;
  };
}

Work at_once(Move move) {
  return [move = std::move(move)](Instant start) {
    move.carry_out();
    return std::max(start, std::chrono::steady_clock::now());
  };
}

std::vector<BlockPtr> blocks_of(const Move& move) {
  std::vector<BlockPtr> blocks;
  for (const auto& block : {move.to.block, move.from.block}) {
    if (block) {
      blocks.push_back(block);
    }
  }
  return blocks;
}

// With mutex() held.
Move describe(const at::Tensor& to, char* to_data, const at::Tensor& from, char* from_data) {
  Move move{view_of(to, to_data), view_of(from, from_data)};
  move.bytes = from.numel() * from.itemsize();
  move.same_bits = to.scalar_type() == from.scalar_type() && to.is_conj() == from.is_conj() &&
                   to.is_neg() == from.is_neg();
  const bool alike = (to.is_contiguous() && from.is_contiguous()) ||
                     (to.strides() == from.strides() && to.is_non_overlapping_and_dense());
  move.whole = move.same_bits && alike;
  return move;
}

char* readable(const at::Tensor& tensor) {
  return const_cast<char*>(static_cast<const char*>(tensor.const_data_ptr()));
}

char* writable(const at::Tensor& tensor) { return static_cast<char*>(tensor.mutable_data_ptr()); }

void over_the_wire(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  const auto wire = from.is_cpu() ? kToDevice : kToHost;
  const int device = (from.is_cpu() ? to : from).device().index();
  const auto stream = current_stream(device);
  char* const target = writable(to);
  char* const source = readable(from);
  TicketPtr ticket;
  bool asynchronous = false;
  {
    const std::lock_guard lock(mutex());
    maybe_fail(kCopy);
    Task task;
    auto move = describe(to, target, from, source);
    const auto& host = from.is_cpu() ? from : to;
    // Others copy a tensor that is not one run of bytes by way of memory that is not pinned.
    asynchronous = non_blocking && (from.is_cpu() ? move.from : move.to).block &&
                   host.is_non_overlapping_and_dense();
    statistics().traffic.at(wire).add(static_cast<std::int64_t>(move.bytes), asynchronous);
    task.uses = blocks_of(move);
    task.awaited = !asynchronous;
    const auto number = (newest(stream) << 8 ^ static_cast<std::uint64_t>(stream.second)) << 1 ^
                        static_cast<std::uint64_t>(device);
    task.work = transfer(std::move(move), device, wire, random_delay(number), strikes(kLate));
    ticket = enqueue(stream, std::move(task));
  }
  if (!asynchronous) {
    wait(ticket);
    const std::lock_guard lock(mutex());
    check_healthy(device);
  }
}

// A copy from one device to another comes after what both were given, and before what follows.
void within_devices(const at::Tensor& to, const at::Tensor& from) {
  const auto stream = current_stream(from.device().index());
  const auto other = current_stream(to.device().index());
  char* const target = writable(to);
  char* const source = readable(from);
  const std::lock_guard lock(mutex());
  Task task;
  auto move = describe(to, target, from, source);
  statistics().traffic[kWithin].add(static_cast<std::int64_t>(move.bytes), true);
  if (other != stream) {
    task.after = enqueue(other, {});
  }
  task.uses = blocks_of(move);
  task.work = at_once(std::move(move));
  auto ticket = enqueue(stream, std::move(task));
  if (other != stream) {
    enqueue(other, {.work = {}, .uses = {}, .after = std::move(ticket), .awaited = false});
  }
}

}  // namespace

void copy(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  check_not_forked();
  if (to.numel() == 0) {
    return;
  }
  if (to.is_cpu() || from.is_cpu()) {
    over_the_wire(to, from, non_blocking);
  } else {
    within_devices(to, from);
  }
}

void fill(const at::Tensor& tensor, const c10::Scalar& value) {
  check_not_forked();
  if (tensor.numel() == 0) {
    return;
  }
  char* const data = writable(tensor);
  const std::lock_guard lock(mutex());
  auto view = view_of(tensor, data);
  Task task;
  task.uses = {view.block};
  task.work = [view = std::move(view), value](Instant start) {
    const std::shared_lock content(view.block->content);
    const at::NoGradGuard no_grad;
    auto target = view.tensor(view.dtype);
    target._set_conj(view.conjugate);
    target._set_neg(view.negative);
    target.fill_(value);
    return std::max(start, std::chrono::steady_clock::now());
  };
  enqueue(current_stream(tensor.device().index()), std::move(task));
}

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) {
    return;
  }
  TicketPtr ticket;
  {
    const std::lock_guard lock(mutex());
    Task task;
    task.uses = {device_block(to, bytes), device_block(from, bytes)};
    task.awaited = true;
    task.work = [target = task.uses[0]->real(to), source = task.uses[1]->real(from),
                 bytes](Instant start) {
      std::memcpy(target, source, bytes);
      return start;
    };
    ticket = enqueue(current_stream(current_device()), std::move(task));
  }
  wait(ticket);
}

}  // namespace sim
