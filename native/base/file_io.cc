#include "base/file_io.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

namespace forklet {

Status WriteAt(const UniqueFd& fd, std::span<const uint8_t> data, uint64_t offset) {
  while (!data.empty()) {
    const ssize_t count = ::pwrite(fd.get(), data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      // EFAULT: `data` is a mapping, and the file behind it failed.
      return Error{errno == EFAULT ? ErrorCode::kIo : ErrorCode::kSystem, errno, "pwrite", {}};
    }
    data = data.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return Ok();
}

Status ReadAt(const UniqueFd& fd, std::span<uint8_t> out, uint64_t offset) {
  while (!out.empty()) {
    const ssize_t count = ::pread(fd.get(), out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Error{ErrorCode::kIo, errno, "pread", {}};
    if (count == 0) {
      return Error{ErrorCode::kIo, 0, "pread",
                   "the file ends at byte " + std::to_string(offset) + ", too early"};
    }
    out = out.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return Ok();
}

Result<std::vector<FileRange>> FindData(const UniqueFd& fd, uint64_t bytes) {
  std::vector<FileRange> ranges;
  for (uint64_t offset = 0; offset < bytes;) {
    const off_t data = ::lseek(fd.get(), static_cast<off_t>(offset), SEEK_DATA);
    // Nothing but a hole up to the end.
    if (data < 0 && errno == ENXIO) break;
    if (data < 0) return Error{ErrorCode::kSystem, errno, "lseek(SEEK_DATA)", {}};
    const off_t hole = ::lseek(fd.get(), data, SEEK_HOLE);
    // ENXIO: the file was truncated in between.
    if (hole < 0 && errno == ENXIO) break;
    if (hole < 0) return Error{ErrorCode::kSystem, errno, "lseek(SEEK_HOLE)", {}};
    const auto start = static_cast<uint64_t>(data);
    if (start >= bytes) break;
    const uint64_t end = std::min(static_cast<uint64_t>(hole), bytes);
    ranges.push_back({start, end - start});
    offset = end;
  }
  return ranges;
}

}  // namespace forklet
