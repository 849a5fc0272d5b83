#include "base/mapping.h"

#include <sys/mman.h>

#include <cerrno>

namespace forklet {

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Reset();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Result<Mapping> Mapping::Create(const UniqueFd& fd, size_t size, int protection, int flags,
                                uint64_t offset) {
  void* address = ::mmap(nullptr, size, protection, flags, fd.get(), static_cast<off_t>(offset));
  if (address == MAP_FAILED) {
    const int saved = errno;
    return Error{saved == ENOMEM ? ErrorCode::kNoMemory : ErrorCode::kSystem, saved, "mmap",
                 std::to_string(size) + " bytes"};
  }
  Mapping mapping;
  mapping.data_ = static_cast<uint8_t*>(address);
  mapping.size_ = size;
  return mapping;
}

void Mapping::Reset() {
  if (data_ == nullptr) return;
  // Fails only for arguments that mmap(2) itself did not hand out.
  CHECK(::munmap(data_, size_) == 0);
  data_ = nullptr;
  size_ = 0;
}

}  // namespace forklet
