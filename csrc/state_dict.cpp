#include "veturboio/csrc/state_dict.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/Layout.h>
#include <c10/core/StreamGuard.h>

#include <optional>

#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {
namespace {

constexpr std::uint8_t kConjugated = 1;
constexpr std::uint8_t kNegated = 2;

// Bytes from the first element to the end of the last, in memory.
std::uint64_t span(const at::Tensor& tensor) {
  if (tensor.numel() == 0) {
    return 0;
  }
  std::uint64_t last = 0;
  for (std::int64_t d = 0; d < tensor.dim(); ++d) {
    last += static_cast<std::uint64_t>(tensor.size(d) - 1) *
            static_cast<std::uint64_t>(tensor.stride(d));
  }
  return (last + 1) * tensor.element_size();
}

// Why a tensor has no bytes that could be written; empty if it has.
std::string refusal(const at::Tensor& tensor) {
  if (!tensor.defined()) {
    return "is undefined";
  }
  if (tensor.layout() != c10::kStrided) {
    return c10::str("layout ", tensor.layout(), " cannot be saved");
  }
  if (tensor.is_nested()) {
    return "a nested tensor cannot be saved";
  }
  if (tensor.is_meta()) {
    return "is on the meta device and has no data";
  }
  // A wrapper as vmap and grad make them. Devices without storages, such as XLA, are copied from.
  if (!tensor.has_storage() && tensor.is_cpu()) {
    return "has no memory of its own";
  }
  // A wrapper of other tensors, such as a DTensor, whose own storage is a stand-in.
  if (tensor.has_storage() && tensor.numel() > 0 && tensor.storage().data() == nullptr) {
    return "has no memory of its own";
  }
  // A storage may have been cut since, as FSDP does with the parameters of other ranks.
  if (tensor.has_storage() &&
      tensor.storage_offset() * tensor.element_size() + span(tensor) > tensor.storage().nbytes()) {
    return c10::str("reaches past its storage of ", tensor.storage().nbytes(), " bytes");
  }
  return "";
}

std::uint8_t flips(const at::Tensor& tensor) {
  std::uint8_t bits = 0;
  bits |= tensor.is_conj() ? kConjugated : 0;
  bits |= tensor.is_neg() ? kNegated : 0;
  return bits;
}

template <typename To>
To copied(at::IntArrayRef sizes) {
  To to;
  to.reserve(sizes.size());
  for (std::int64_t size : sizes) {
    to.push_back(size);
  }
  return to;
}

// Copies elements [begin, end) of `tensor`, counted in row-major order, to `target`: whole rows
// at once, and what is left of the first and the last row by the same rule, a dimension less.
void copy_elements(const at::Tensor& tensor, std::int64_t begin, std::int64_t end,
                   std::uint8_t* target) {
  if (begin >= end) {
    return;
  }
  const auto copy = [&](const at::Tensor& part, std::uint8_t* to) {
    at::from_blob(to, part.sizes(), tensor.options().device(c10::kCPU)).copy_(part);
  };
  if (tensor.dim() == 0) {
    return copy(tensor, target);
  }
  const std::int64_t row = tensor.numel() / tensor.size(0);
  const std::int64_t first = (begin + row - 1) / row;
  const std::int64_t last = end / row;
  if (first > last) {  // all within one row
    return copy_elements(tensor.select(0, last), begin - last * row, end - last * row, target);
  }
  const auto at = [&](std::int64_t element) {
    return target + (element - begin) * tensor.element_size();
  };
  if (begin < first * row) {
    copy_elements(tensor.select(0, first - 1), begin - (first - 1) * row, row, target);
  }
  if (first < last) {
    copy(tensor.narrow(0, first, last - first), at(first * row));
  }
  if (last * row < end) {
    copy_elements(tensor.select(0, last), 0, end - last * row, at(last * row));
  }
}

}  // namespace

void StateDict::push(rust::Str name, const at::Tensor* tensor) {
  tensors_.emplace_back(std::string(name), *tensor);
}

TensorView StateDict::describe(std::size_t index) const {
  const auto& [name, tensor] = tensors_.at(index);
  TensorView view{};
  view.name = name;
  view.refusal = refusal(tensor);
  if (!view.refusal.empty()) {
    return view;
  }
  view.scalar_type = static_cast<std::int8_t>(tensor.scalar_type());
  view.shape = copied<rust::Vec<std::int64_t>>(tensor.sizes());
  view.strides = copied<rust::Vec<std::int64_t>>(tensor.strides());
  view.flips = flips(tensor);
  const c10::Device device = tensor.device();
  view.device = static_cast<std::int64_t>(device.type()) * 256 + device.index();
  if (tensor.has_storage()) {
    view.begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
    view.end = view.begin + span(tensor);
  }
  view.byte_len = tensor.nbytes();
  view.item_size = tensor.element_size();
  view.contiguous = tensor.is_contiguous();
  return view;
}

const std::uint8_t* StateDict::data(std::size_t index) const {
  const at::Tensor& tensor = tensors_.at(index).second;
  if (!tensor.is_cpu() || !tensor.is_contiguous() || flips(tensor) != 0) {
    return nullptr;
  }
  return static_cast<const std::uint8_t*>(tensor.const_data_ptr());
}

std::uint8_t* StateDict::writable(std::size_t index) const {
  const at::Tensor& tensor = tensors_.at(index).second;
  if (data(index) == nullptr) {
    return nullptr;
  }
  tensor.unsafeGetTensorImpl()->bump_version();
  return static_cast<std::uint8_t*>(tensor.mutable_data_ptr());
}

void StateDict::begin() const {
  for (const auto& [name, tensor] : tensors_) {
    if (tensor.defined() && !tensor.is_cpu() && !tensor.is_meta()) {
      lanes_.of(tensor.device());
    }
  }
  lanes_.begin();
}

void StateDict::gather(std::size_t index, std::uint64_t begin,
                       rust::Slice<std::uint8_t> bytes) const {
  const at::NoGradGuard no_grad;
  at::Tensor tensor = tensors_.at(index).second;
  const Lane* const lane = lanes_.find(tensor.device());
  std::optional<c10::StreamGuard> guard;
  if (lane != nullptr && lane->is_async()) {
    guard.emplace(lane->stream());
  }
  // torch does not copy every one-byte type from view to view, but bytes it does.
  if (tensor.element_size() == 1 && tensor.scalar_type() != at::kBool) {
    tensor = tensor.view(at::kByte);
  }
  const std::uint64_t element = tensor.element_size();
  TORCH_INTERNAL_ASSERT(begin % element == 0 && bytes.size() % element == 0);
  TORCH_INTERNAL_ASSERT(begin + bytes.size() <= tensor.nbytes());
  const auto first = static_cast<std::int64_t>(begin / element);
  copy_elements(tensor, first, first + static_cast<std::int64_t>(bytes.size() / element),
                bytes.data());
}

std::unique_ptr<StateDict> new_state_dict() { return std::make_unique<StateDict>(); }

}  // namespace veturboio::core
