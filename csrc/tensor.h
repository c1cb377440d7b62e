// The tensors of a load: each with a storage of its own over the region they share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "rust/cxx.h"

namespace veturboio::core {

class Region;
class Targets;
struct StorageSpec;
struct TensorSpec;

// Tensors over `region`, which goes when the last of them goes, and over the storages of `targets`.
std::unique_ptr<std::vector<at::Tensor>> make_tensors(const rust::Vec<TensorSpec>& specs,
                                                      const rust::Vec<StorageSpec>& storages,
                                                      rust::Box<Region> region,
                                                      const Targets& targets);

// Tensors on the meta device: shapes and dtypes, no bytes.
std::vector<at::Tensor> make_meta_tensors(const rust::Vec<TensorSpec>& specs,
                                          const rust::Vec<StorageSpec>& storages);

// torch's name of a c10::ScalarType, such as ComplexDouble.
rust::String scalar_type_name(std::int8_t scalar_type);

}  // namespace veturboio::core
