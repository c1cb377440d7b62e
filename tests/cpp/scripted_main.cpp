// Runs scripted.cpp, which is compiled into this program or into a library that it links.
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>

int run_scripted(const std::string& directory);

int main(int, char** arguments) {
  const std::filesystem::path directory = std::string(arguments[0]) + ".files";
  int failed = 1;
  try {
    std::filesystem::create_directories(directory);
    failed = run_scripted(directory);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
  }
  std::filesystem::remove_all(directory);
  return failed;
}
