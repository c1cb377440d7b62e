#include "veturboio/csrc/targets.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/StreamGuard.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "veturboio/csrc/state_dict.h"
#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {
namespace {

// Parts up to this length that follow one another travel in one copy.
constexpr std::uint64_t kSmall = 64 << 10;

// Where tensors begin that share an allocation: what every kernel may assume.
constexpr std::uint64_t kAlign = 512;

// No gradient is recorded, and what shares memory here is no view.
struct Quiet {
  at::NoGradGuard no_grad;
  at::AutoDispatchBelowADInplaceOrView below;
};

at::TensorOptions on(const Lane& lane, at::ScalarType type) {
  return at::TensorOptions(lane.device()).dtype(type);
}

// All of a storage as a tensor.
at::Tensor whole(const c10::Storage& storage, const Lane& lane, at::ScalarType type) {
  const auto count = static_cast<std::int64_t>(storage.nbytes() / c10::elementSize(type));
  return at::empty({0}, on(lane, type)).set_(storage, 0, {count}, {1});
}

at::Tensor host(const std::uint8_t* bytes, std::uint64_t len, at::ScalarType type) {
  const auto count = static_cast<std::int64_t>(len / c10::elementSize(type));
  return at::from_blob(const_cast<std::uint8_t*>(bytes), {count}, at::TensorOptions(type));
}

// Where the bytes of parts end in their segment. Parts may overlap, where tensors share bytes of
// the file, so the last one to begin need not be the last one to end.
std::uint64_t end_of(const PartSpec* begin, const PartSpec* end) {
  std::uint64_t last = 0;
  for (const PartSpec* part = begin; part != end; ++part) {
    last = std::max(last, part->at + part->len);
  }
  return last;
}

at::Tensor part_of(const at::Tensor& tensor, std::uint64_t begin, std::uint64_t len) {
  return tensor.narrow(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(len));
}

}  // namespace

// Bytes on the device.
std::uint64_t Targets::Target::size() const {
  return is_converted() ? byte_len / c10::elementSize(from) * c10::elementSize(to) : byte_len;
}

void Targets::Target::hold(c10::Storage memory) {
  const Quiet quiet;
  storage = std::move(memory);
  bytes = whole(storage, *lane, at::kByte);
  if (is_converted()) {
    typed = whole(storage, *lane, to);
  }
}

void Targets::add(const TargetSpec& spec) const {
  const c10::Device device(static_cast<c10::DeviceType>(spec.kind), spec.index);
  targets_.push_back(Target{.lane = &lanes_.of(device),
                            .byte_len = spec.byte_len,
                            .from = static_cast<at::ScalarType>(spec.from_type),
                            .to = static_cast<at::ScalarType>(spec.to_type),
                            .storage = {},
                            .bytes = {},
                            .typed = {}});
}

bool Targets::adopt(std::size_t index) const {
  TORCH_INTERNAL_ASSERT(tensors_ != nullptr);
  const at::Tensor tensor = tensors_->at(index).second;
  if (tensor.is_cpu() || !tensor.is_contiguous() || tensor.is_conj() || tensor.is_neg()) {
    return false;
  }
  const Quiet quiet;
  const Lane& lane = lanes_.of(tensor.device());
  const auto first = static_cast<std::int64_t>(tensor.storage_offset() * tensor.element_size());
  const auto count = static_cast<std::int64_t>(tensor.nbytes());
  at::Tensor bytes =
      at::empty({0}, on(lane, at::kByte)).set_(tensor.storage(), first, {count}, {1});
  tensor.unsafeGetTensorImpl()->bump_version();
  targets_.push_back(Target{.lane = &lane,
                            .byte_len = tensor.nbytes(),
                            .from = tensor.scalar_type(),
                            .to = tensor.scalar_type(),
                            .storage = tensor.storage(),
                            .bytes = std::move(bytes),
                            .typed = {}});
  return true;
}

Allocation Targets::allocate(std::size_t index) const {
  Target& target = targets_.at(index);
  try {
    if (one_allocation_) {
      if (!target.bytes.defined()) {
        allocate_together(*target.lane);
      }
      return {};
    }
    // As elements where there are whole ones, for allocators that ask.
    const std::uint64_t element = c10::elementSize(target.to);
    const bool fits = target.size() % element == 0;
    const auto count = static_cast<std::int64_t>(fits ? target.size() / element : target.size());
    target.hold(at::empty({count}, on(*target.lane, fits ? target.to : at::kByte)).storage());
  } catch (const c10::OutOfMemoryError& error) {
    return {.out_of_memory = true, .reason = error.what_without_backtrace()};
  }
  return {};
}

// One allocation for all storages on a device. Each keeps the whole alive.
void Targets::allocate_together(const Lane& lane) const {
  std::uint64_t total = 0;
  std::vector<std::pair<Target*, std::uint64_t>> placed;
  for (Target& target : targets_) {
    if (target.lane == &lane) {
      placed.emplace_back(&target, total);
      total += (target.size() + kAlign - 1) / kAlign * kAlign;
    }
  }
  const at::Tensor all = at::empty({static_cast<std::int64_t>(total)}, on(lane, at::kByte));
  auto* const begin = static_cast<std::uint8_t*>(all.storage().mutable_data());
  for (auto& [target, offset] : placed) {
    auto* const owner = new c10::Storage(all.storage());
    c10::DataPtr bytes(
        begin + offset, owner, [](void* held) { delete static_cast<c10::Storage*>(held); },
        lane.device());
    target->hold(c10::Storage(c10::Storage::use_byte_size_t(), target->size(), std::move(bytes),
                              /*allocator=*/nullptr, /*resizable=*/false));
  }
}

std::int8_t Targets::pinned_kind() const {
  pinned_kind_ = use_pinmem_ ? lanes_.pinned_kind() : -1;
  return pinned_kind_;
}

std::unique_ptr<HostBytes> Targets::host_memory(std::size_t len) const {
  return host_bytes(pinned_kind_, len);
}

void Targets::begin() const { lanes_.begin(); }

std::unique_ptr<Copies> Targets::copy(rust::Slice<const std::uint8_t> segment,
                                      rust::Slice<const PartSpec> parts) const {
  const Quiet quiet;
  std::vector<const Lane*> used;
  try {
    const PartSpec* const end = parts.data() + parts.size();
    for (const PartSpec* part = parts.data(); part != end;) {
      const Lane* const lane = targets_.at(part->target).lane;
      const PartSpec* const next = std::find_if(
          part, end, [&](const PartSpec& other) { return targets_.at(other.target).lane != lane; });
      TORCH_INTERNAL_ASSERT(end_of(part, next) <= segment.size());
      std::optional<c10::StreamGuard> guard;
      if (lane->is_async()) {
        guard.emplace(lane->stream());
      }
      if (goes_on(*lane) && std::find(used.begin(), used.end(), lane) == used.end()) {
        used.push_back(lane);
      }
      send(*lane, segment.data(), part, next);
      part = next;
    }
    std::vector<c10::Event> events;
    for (const Lane* lane : used) {
      events.push_back(lane->mark());
    }
    return used.empty() ? nullptr : std::make_unique<Copies>(std::move(events));
  } catch (const std::exception& error) {
    out_of_memory_ = dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr;
    // The segment is given away now, so nothing may go on reading it.
    for (const Lane* lane : used) {
      lane->settle();
    }
    throw;
  }
}

// Sends parts that follow one another in the segment: small neighbours together, the rest each.
void Targets::send(const Lane& lane, const std::uint8_t* segment, const PartSpec* begin,
                   const PartSpec* end) const {
  while (begin != end) {
    const PartSpec* next = begin;
    while (lane.is_async() && next != end && next->len <= kSmall &&
           next->at + next->len - begin->at < static_cast<std::uint64_t>(1 << 20) - kAlign) {
      ++next;
    }
    if (next - begin > 1 && lane.has_scratch()) {
      send_small(lane, segment, begin, next);
      begin = next;
      continue;
    }
    const Target& target = targets_.at(begin->target);
    if (target.is_converted()) {
      send_converted(lane, segment + begin->at, *begin);
    } else {
      part_of(target.bytes, begin->to, begin->len)
          .copy_(host(segment + begin->at, begin->len, at::kByte), goes_on(lane));
    }
    ++begin;
  }
}

// One copy to the device, and on from there.
void Targets::send_small(const Lane& lane, const std::uint8_t* segment, const PartSpec* begin,
                         const PartSpec* end) const {
  // Elements keep their alignment, which is that of the file.
  const std::uint64_t start = begin->at / kAlign * kAlign;
  const std::uint64_t len = end_of(begin, end) - start;
  const Scratch taken(lane);
  const at::Tensor scratch = part_of(taken.bytes(), 0, len);
  scratch.copy_(host(segment + start, len, at::kByte), goes_on(lane));
  for (const PartSpec* part = begin; part != end; ++part) {
    const Target& target = targets_.at(part->target);
    const at::Tensor from = part_of(scratch, part->at - start, part->len);
    if (target.is_converted()) {
      const std::uint64_t element = c10::elementSize(target.from);
      part_of(target.typed, part->to / element, part->len / element)
          .copy_(from.view(target.from), /*non_blocking=*/true);
    } else {
      part_of(target.bytes, part->to, part->len).copy_(from, /*non_blocking=*/true);
    }
  }
}

// Converts on the device, a scratchful at a time; in host memory straight from the segment.
void Targets::send_converted(const Lane& lane, const std::uint8_t* bytes,
                             const PartSpec& part) const {
  const Target& target = targets_.at(part.target);
  const std::uint64_t element = c10::elementSize(target.from);
  if (lane.device().is_cpu()) {
    part_of(target.typed, part.to / element, part.len / element)
        .copy_(host(bytes, part.len, target.from));
    return;
  }
  const Scratch taken(lane);
  const auto size = static_cast<std::uint64_t>(taken.bytes().numel());
  for (std::uint64_t done = 0; done < part.len; done += size) {
    const std::uint64_t len = std::min(size, part.len - done);
    const at::Tensor scratch = part_of(taken.bytes(), 0, len);
    scratch.copy_(host(bytes + done, len, at::kByte), goes_on(lane));
    part_of(target.typed, (part.to + done) / element, len / element)
        .copy_(scratch.view(target.from), /*non_blocking=*/true);
  }
}

void Targets::finish() const { lanes_.wait(); }

void Targets::abandon() const noexcept { lanes_.settle(); }

std::unique_ptr<Targets> new_targets(bool use_pinmem, bool one_allocation) {
  return std::make_unique<Targets>(use_pinmem, one_allocation);
}

}  // namespace veturboio::core
