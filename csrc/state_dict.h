// The tensors of a save, as the core looks at them: descriptions, addresses, and bytes in
// row-major order for those that do not lie so in host memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rust/cxx.h"
#include "veturboio/csrc/lanes.h"

namespace veturboio::core {

struct TensorView;

class StateDict {
 public:
  // `tensor` is not null; a reference to it is kept.
  void push(rust::Str name, const at::Tensor* tensor);
  std::size_t size() const { return tensors_.size(); }
  TensorView describe(std::size_t index) const;
  const std::pair<std::string, at::Tensor>& at(std::size_t index) const {
    return tensors_.at(index);
  }

  // Where a tensor's bytes lie in host memory as a file is to have them; null where they do not.
  const std::uint8_t* data(std::size_t index) const;

  std::size_t byte_len(std::size_t index) const { return tensors_.at(index).second.nbytes(); }

  // The same to be written to, which counts as an in-place change of the tensor.
  std::uint8_t* writable(std::size_t index) const;

  // Has all that is gathered come after what is under way on the caller's current streams.
  void begin() const;

  // The kind of device that some of the tensors lie on, and whose host memory is worth having.
  std::int8_t pinned_kind() const { return lanes_.pinned_kind(); }
  std::unique_ptr<HostBytes> host_memory(std::int8_t kind, std::size_t len) const {
    return host_bytes(kind, len);
  }

  // Fills `bytes` from byte `begin` on of the tensor in row-major order. Both are multiples of
  // the element size. May be called from several threads at once; needs no more memory than
  // `bytes`, whatever the tensor's size.
  void gather(std::size_t index, std::uint64_t begin, rust::Slice<std::uint8_t> bytes) const;

 private:
  std::vector<std::pair<std::string, at::Tensor>> tensors_;
  mutable Lanes lanes_;  // found by `begin`
};

std::unique_ptr<StateDict> new_state_dict();

}  // namespace veturboio::core
