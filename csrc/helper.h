// torch.classes.veturboio.IOHelper: host memory that is kept from one load or save to the next.
#pragma once

#include <torch/custom_class.h>

#include <cstdint>

#include "rust/cxx.h"

namespace veturboio::core {

class Buffers;

class IOHelper final : public torch::CustomClassHolder {
 public:
  // Keeps up to `nbytes` bytes.
  explicit IOHelper(std::int64_t nbytes);

  // Bytes that are held now.
  std::int64_t nbytes() const;

  // Bytes that are kept at most.
  std::int64_t capacity() const;

  // Gives the memory back. The helper can still be passed, and keeps nothing.
  void close();

  const Buffers& buffers() const { return *buffers_; }

 private:
  rust::Box<Buffers> buffers_;
};

using HelperPtr = c10::intrusive_ptr<IOHelper>;

constexpr std::int64_t kHelperBytes = 256 << 20;

}  // namespace veturboio::core
