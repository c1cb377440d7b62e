#include "veturboio/csrc/tensor.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>
#include <c10/util/strides.h>

#include "veturboio/csrc/targets.h"
#include "veturboio/src/ffi.rs.h"

namespace veturboio::core {
namespace {

// src/format/dtype.rs writes these numbers down; here the compiler checks them.
#define VETURBOIO_IS(type, number) static_assert(static_cast<int>(at::ScalarType::type) == (number))
VETURBOIO_IS(Byte, 0);
VETURBOIO_IS(Char, 1);
VETURBOIO_IS(Short, 2);
VETURBOIO_IS(Int, 3);
VETURBOIO_IS(Long, 4);
VETURBOIO_IS(Half, 5);
VETURBOIO_IS(Float, 6);
VETURBOIO_IS(Double, 7);
VETURBOIO_IS(ComplexFloat, 9);
VETURBOIO_IS(ComplexDouble, 10);
VETURBOIO_IS(Bool, 11);
VETURBOIO_IS(BFloat16, 15);
VETURBOIO_IS(Float8_e5m2, 23);
VETURBOIO_IS(Float8_e4m3fn, 24);
VETURBOIO_IS(Float8_e5m2fnuz, 25);
VETURBOIO_IS(Float8_e4m3fnuz, 26);
VETURBOIO_IS(UInt16, 27);
VETURBOIO_IS(UInt32, 28);
VETURBOIO_IS(UInt64, 29);
VETURBOIO_IS(Float8_e8m0fnu, 44);
VETURBOIO_IS(Float4_e2m1fn_x2, 45);
#undef VETURBOIO_IS

// The counted owner of a region: every storage over the region holds one reference.
class Owner final : public c10::intrusive_ptr_target {
 public:
  explicit Owner(rust::Box<Region> region) : region_(std::move(region)) {}
  const Region& region() const { return *region_; }

 private:
  rust::Box<Region> region_;
};

void release(void* owner) { c10::intrusive_ptr<Owner>::reclaim(static_cast<Owner*>(owner)); }

at::ScalarType scalar_type(const TensorSpec& spec) {
  return static_cast<at::ScalarType>(spec.scalar_type);
}

at::IntArrayRef ints(const rust::Vec<std::int64_t>& numbers) {
  return {numbers.data(), numbers.size()};
}

// Views of one storage would share a version counter, which breaks autograd once one of them
// is written to, and would each be saved by torch.save with the bytes of all. So every tensor
// has its own storage, of its own size, unless the file says that they share one.
c10::Storage make_storage(const StorageSpec& spec, c10::DataPtr data) {
  return c10::Storage(c10::Storage::use_byte_size_t(), static_cast<std::int64_t>(spec.byte_len),
                      std::move(data), /*allocator=*/nullptr, /*resizable=*/false);
}

c10::DataPtr bytes_of(const StorageSpec& spec, const c10::intrusive_ptr<Owner>& owner) {
  if (spec.byte_len == 0) {
    return c10::DataPtr(nullptr, c10::Device(c10::kCPU));
  }
  std::uint8_t* bytes = address(owner->region(), spec);
  auto reference = owner;
  return c10::DataPtr(bytes, reference.release(), &release, c10::Device(c10::kCPU));
}

// A tensor of a device is made by the device, whose implementation it may need.
at::Tensor view_of(const TensorSpec& spec, c10::Storage storage) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const at::TensorOptions options(storage.device());
  const at::Tensor tensor = at::empty({0}, options.dtype(scalar_type(spec)));
  const at::IntArrayRef sizes = ints(spec.shape);
  const c10::DimVector dense = c10::contiguous_strides(sizes);
  const bool has_strides = spec.strides.size() == spec.shape.size();
  return tensor.set_(std::move(storage), spec.offset, sizes,
                     has_strides ? ints(spec.strides) : at::IntArrayRef(dense));
}

at::Tensor plain(const TensorSpec& spec, c10::Storage storage) {
  const auto key = storage.device().is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::Meta;
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(key), c10::scalarTypeToTypeMeta(scalar_type(spec)));
  c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (spec.strides.empty()) {
    impl->set_sizes_contiguous(ints(spec.shape));
  } else {
    impl->set_sizes_and_strides(ints(spec.shape), ints(spec.strides));
  }
  impl->set_storage_offset(spec.offset);
  return tensor;
}

at::Tensor make_tensor(const TensorSpec& spec, c10::Storage storage) {
  const c10::Device device = storage.device();
  at::Tensor tensor = device.is_cpu() || device.is_meta() ? plain(spec, std::move(storage))
                                                          : view_of(spec, std::move(storage));
  if (spec.settle) {
    tensor = tensor.clone(at::MemoryFormat::Contiguous);
  }
  if (spec.requires_grad) {
    tensor.set_requires_grad(true);
  }
  return tensor;
}

std::vector<at::Tensor> make_all(const rust::Vec<TensorSpec>& specs,
                                 const std::vector<c10::Storage>& storages) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(specs.size());
  for (const TensorSpec& spec : specs) {
    tensors.push_back(make_tensor(spec, storages.at(spec.storage)));
  }
  return tensors;
}

}  // namespace

std::unique_ptr<std::vector<at::Tensor>> make_tensors(const rust::Vec<TensorSpec>& specs,
                                                      const rust::Vec<StorageSpec>& storages,
                                                      rust::Box<Region> region,
                                                      const Targets& targets) {
  const auto owner = c10::make_intrusive<Owner>(std::move(region));
  std::vector<c10::Storage> made;
  made.reserve(storages.size());
  for (const StorageSpec& spec : storages) {
    made.push_back(spec.target < 0 ? make_storage(spec, bytes_of(spec, owner))
                                   : targets.storage(static_cast<std::size_t>(spec.target)));
  }
  return std::make_unique<std::vector<at::Tensor>>(make_all(specs, made));
}

std::vector<at::Tensor> make_meta_tensors(const rust::Vec<TensorSpec>& specs,
                                          const rust::Vec<StorageSpec>& storages) {
  std::vector<c10::Storage> made;
  made.reserve(storages.size());
  for (const StorageSpec& spec : storages) {
    made.push_back(make_storage(spec, c10::DataPtr(nullptr, c10::Device(c10::kMeta))));
  }
  return make_all(specs, made);
}

rust::String scalar_type_name(std::int8_t scalar_type) {
  return c10::toString(static_cast<at::ScalarType>(scalar_type));
}

}  // namespace veturboio::core
