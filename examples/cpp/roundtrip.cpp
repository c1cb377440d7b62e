// Loads a safetensors file and saves its tensors and metadata to another.
#include <veturboio/veturboio.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: roundtrip INPUT OUTPUT" << std::endl;
    return 2;
  }
  try {
    const veturboio::StateDict tensors = veturboio::load(argv[1]);
    int64_t bytes = 0;
    for (const auto& entry : tensors) {
      bytes += static_cast<int64_t>(entry.value().nbytes());
    }
    const veturboio::Metadata notes = veturboio::metadata(argv[1]);
    veturboio::SaveOptions options;
    if (!notes.empty()) {
      options.metadata = notes;
    }
    veturboio::save(tensors, argv[2], options);
    std::cout << tensors.size() << " tensors, " << bytes << " bytes" << std::endl;
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << std::endl;
    return 1;
  }
  return 0;
}
