#include "veturboio/csrc/helper.h"

#include "veturboio/csrc/error.h"
#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {

IOHelper::IOHelper(std::int64_t nbytes) : buffers_(calling([&] { return new_buffers(nbytes); })) {}

std::int64_t IOHelper::nbytes() const { return static_cast<std::int64_t>(buffers_->held()); }

std::int64_t IOHelper::capacity() const { return static_cast<std::int64_t>(buffers_->capacity()); }

void IOHelper::close() { buffers_->close(); }

}  // namespace veturboio::core
