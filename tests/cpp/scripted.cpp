// What a program does that knows torch alone: it includes no header of veturboio's and calls no
// function of it. The operators are there because the CMake target has the linker keep the library.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>
#include <torch/script.h>

#include <iostream>
#include <memory>
#include <string>

namespace {

constexpr const char* kModule = R"(
def forward(self, file: str, value: Tensor) -> Tensor:
    operators.save({"value": value}, file)
    return operators.load(file)["value"]
)";

// What `operators` is in the module: torch.ops.veturboio, a name that C++ has none for.
struct Operators final : torch::jit::NativeResolver {
  torch::jit::SugaredValuePtr resolveValue(const std::string& name,
                                           torch::jit::GraphFunction& method,
                                           const torch::jit::SourceRange& place) override {
    if (name == "operators") {
      return std::make_shared<torch::jit::BuiltinModule>("veturboio");
    }
    return NativeResolver::resolveValue(name, method, place);
  }
};

// A module that was scripted elsewhere, as a program gets it.
torch::jit::Module scripted(const std::string& file) {
  torch::jit::Module module("Module");
  module.define(kModule, std::make_shared<Operators>());
  module.save(file);
  return torch::jit::load(file);
}

}  // namespace

int run_scripted(const std::string& directory) {
  if (!c10::Dispatcher::singleton().findSchema({"veturboio::load", ""}).has_value()) {
    std::cerr << "the dispatcher knows no veturboio::load\n";
    return 1;
  }
  const at::Tensor value = at::arange(24, at::kFloat).reshape({2, 3, 4});
  const at::Tensor loaded = scripted(directory + "/module.pt")
                                .forward({directory + "/model.safetensors", value})
                                .toTensor();
  if (!at::equal(loaded, value)) {
    std::cerr << "other values were loaded than were saved\n";
    return 1;
  }
  return 0;
}
