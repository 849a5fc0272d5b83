// A kernel file of any content.
#include "arch/x86_64/kernel/kernel_image.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace forklet;
  const UniqueFd file(::memfd_create("kernel", MFD_CLOEXEC));
  if (!file || ::write(file.get(), data, size) != static_cast<ssize_t>(size)) std::abort();
  auto image = KernelImage::Open("/proc/self/fd/" + std::to_string(file.get()));
  if (!image.ok()) {
    if (image.error().code != ErrorCode::kBadKernel) std::abort();
    return 0;
  }
  auto memory = GuestMemory::Create(uint64_t{32} << 20);
  if (!memory.ok()) std::abort();
  auto kernel = image.value().Load(memory.value());
  if (!kernel.ok()) return 0;
  // What a boot relies on.
  const LoadedKernel& loaded = kernel.value();
  if (loaded.end > memory.value().low_end() || loaded.entry >= loaded.end) std::abort();
  if (loaded.setup_header.empty() == image.value().is_bzimage()) std::abort();
  return 0;
}
