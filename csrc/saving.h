// Classes that take part in a save from Python: the time of its call, and a file that Python writes
// the bytes of.
#pragma once

#include <torch/custom_class.h>

#include <utility>

#include "rust/cxx.h"
#include "veturboio/csrc/error.h"
#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {

// Of two saves to one target, the one with the later ticket is what remains.
class Ticket final : public torch::CustomClassHolder {
 public:
  Ticket() : ticket_(calling([] { return new_save_ticket(); })) {}

  const SaveTicket& ticket() const { return *ticket_; }

 private:
  rust::Box<SaveTicket> ticket_;
};

// A file of this machine that takes its place when it is committed, and goes with this otherwise.
class File final : public torch::CustomClassHolder {
 public:
  explicit File(rust::Box<FileSink> sink) : sink_(std::move(sink)) {}

  const FileSink& sink() const { return *sink_; }

 private:
  rust::Box<FileSink> sink_;
};

using TicketPtr = c10::intrusive_ptr<Ticket>;
using FilePtr = c10::intrusive_ptr<File>;

}  // namespace veturboio::core
