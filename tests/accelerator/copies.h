// Moves tensors between host and devices, on streams and in simulated time.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Scalar.h>

namespace sim {

// Copies `from` into `to`, which has the same sizes. At least one lies on a device. It is done
// when this returns, unless both lie on devices, or the caller asked not to wait and the host's
// side is pinned.
void copy(const at::Tensor& to, const at::Tensor& from, bool non_blocking);

// Writes `value` everywhere, some time later.
void fill(const at::Tensor& tensor, const c10::Scalar& value);

// Copies within one device, and waits for it.
void copy_bytes(void* to, const void* from, std::size_t bytes);

}  // namespace sim
