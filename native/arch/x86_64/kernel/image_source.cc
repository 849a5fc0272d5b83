#include "arch/x86_64/kernel/image_source.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace forklet {

Error BadKernel(const std::string& name, const std::string& what) {
  return Error{ErrorCode::kBadKernel, 0, {}, name + ": " + what};
}

std::string Hex(uint64_t value) {
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof digits, value, 16);
  return "0x" + std::string(digits, end.ptr);
}

Status ImageSource::Read(uint64_t offset, std::span<uint8_t> out) const {
  // Bounds: written so that neither side can overflow.
  if (offset > size_ || out.size() > size_ - offset) {
    return BadKernel(name_, "truncated: " + std::to_string(out.size()) + " bytes at offset " +
                                Hex(offset) + " are needed, but it ends at " + Hex(size_));
  }
  return ReadChecked(offset, out);
}

Status FileSource::ReadChecked(uint64_t offset, std::span<uint8_t> out) const {
  // One pread(2) transfers at most 2 GiB - 4 KiB.
  constexpr size_t kMaxChunk = size_t{1} << 30;
  while (!out.empty()) {
    const ssize_t count =
        ::pread(fd_, out.data(), std::min(out.size(), kMaxChunk), static_cast<off_t>(offset));
    if (count < 0) {
      if (errno == EINTR) continue;
      return Error{ErrorCode::kBadKernel, errno, "pread", name()};
    }
    if (count == 0) {
      return BadKernel(name(), "truncated at " + Hex(offset) + " while it was being read");
    }
    out = out.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return Ok();
}

Status BufferSource::ReadChecked(uint64_t offset, std::span<uint8_t> out) const {
  if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
  return Ok();
}

}  // namespace forklet
