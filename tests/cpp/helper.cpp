// The IOHelper: memory that is kept from one load or save to the next.
#include <veturboio/veturboio.h>

#include <optional>
#include <thread>
#include <vector>

#include <unistd.h>

#include "check.h"

namespace {

// The size of one of its buffers; a save that writes on one thread needs one.
constexpr int64_t kBuffer = 8 << 20;

const std::string kPinmem = "use_pinmem attribute of an exising IOHelper should not be changed";

// Nothing that can be written from where it lies: 16 MB, not contiguous.
veturboio::StateDict weights(double first = 0) {
  veturboio::StateDict tensors;
  tensors.insert("turned", at::arange(first, first + 4'000'000, at::kFloat).view({2000, 2000}).t());
  return tensors;
}

void save(const std::string& path, const veturboio::IOHelper& helper, double first = 0) {
  veturboio::save(weights(first), path, {.num_thread = 1, .helper = helper});
}

bool holds(const std::string& path, double first, const veturboio::LoadOptions& options = {}) {
  return identical(veturboio::load(path, options).at("turned"), weights(first).at("turned"));
}

// Bytes of this process's memory that are in use.
int64_t resident() {
  const std::string pages = read_file("/proc/self/statm");
  return std::stoll(pages.substr(pages.find(' '))) * sysconf(_SC_PAGESIZE);
}

}  // namespace

CASE(a_new_helper_holds_nothing) {
  EXPECT(veturboio::IOHelper().nbytes() == 0);
  EXPECT(veturboio::IOHelper().capacity() == 256 << 20);
  EXPECT(veturboio::IOHelper(5).capacity() == 5);
}

CASE(a_save_leaves_its_memory_for_the_next) {
  const std::string path = scratch("kept.safetensors");
  const veturboio::IOHelper helper;
  for (double first = 0; first < 3; ++first) {
    save(path, helper, first);
    EXPECT(helper.nbytes() == kBuffer);
    EXPECT(holds(path, first));
  }
  EXPECT(holds(path, 2, {.helper = helper}));
}

CASE(no_more_is_kept_than_asked_for) {
  const veturboio::IOHelper helper(kBuffer - 1);
  save(scratch("small.safetensors"), helper);
  EXPECT(helper.nbytes() == 0);
}

CASE(a_closed_helper_serves_and_keeps_nothing) {
  const std::string path = scratch("closed.safetensors");
  veturboio::IOHelper helper;
  save(path, helper);
  helper.close();
  EXPECT(helper.nbytes() == 0);
  save(path, helper, 7);
  EXPECT(helper.nbytes() == 0);
  EXPECT(holds(path, 7, {.helper = helper}));
  helper.close();
}

CASE(a_copy_is_the_same_helper) {
  veturboio::IOHelper helper;
  veturboio::IOHelper copy = helper;
  save(scratch("copy.safetensors"), copy);
  EXPECT(helper.nbytes() == kBuffer);
  copy.close();
  EXPECT(helper.nbytes() == 0);
}

CASE(the_memory_goes_with_the_last_handle) {
  const std::string path = scratch("gone.safetensors");
  const veturboio::StateDict tensors = weights();
  veturboio::save(tensors, path, {.num_thread = 1});
  const int64_t before = resident();
  std::vector<veturboio::IOHelper> helpers(4);
  for (const veturboio::IOHelper& helper : helpers) {
    veturboio::save(tensors, path, {.num_thread = 1, .helper = helper});
  }
  EXPECT(resident() - before > 3 * kBuffer);
  std::optional<veturboio::IOHelper> last = helpers.back();
  helpers.clear();
  EXPECT(last->nbytes() == kBuffer);
  EXPECT(resident() - before > kBuffer / 2);
  last.reset();
  EXPECT(resident() - before < kBuffer / 2);
}

CASE(several_threads_share_one_helper) {
  const veturboio::IOHelper helper;
  std::vector<char> right(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < right.size(); ++i) {
    threads.emplace_back([&, i] {
      const std::string path = scratch("thread" + std::to_string(i) + ".safetensors");
      const auto first = static_cast<double>(i);
      veturboio::save(weights(first), path, {.helper = helper});
      right[i] = holds(path, first, {.helper = helper});
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT(right == std::vector<char>(right.size(), true));
  EXPECT(helper.nbytes() >= kBuffer);
}

CASE(a_negative_size_is_refused) {
  const std::string text = text_of<c10::ValueError>([] { veturboio::IOHelper(-1); });
  EXPECT(text == "make IOHelper: nbytes must not be negative");
}

CASE(use_pinmem_may_not_change) {
  const std::string path = scratch("pinmem.safetensors");
  veturboio::save(weights(), path);
  for (const bool pinned : {false, true}) {
    veturboio::IOHelper helper;
    EXPECT(holds(path, 0, {.use_pinmem = pinned, .helper = helper}));
    const veturboio::LoadOptions changed = {.use_pinmem = !pinned, .helper = helper};
    const std::string text = text_of<c10::ValueError>([&] { veturboio::load(path, changed); });
    EXPECT(text == "load " + path + ": " + kPinmem);
    helper.close();
    EXPECT(holds(path, 0, changed));
  }
}
