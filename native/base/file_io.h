// Reading and writing files of this host, whole and checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

// Writes all of `data` at `offset`. An Error has errno; ENOSPC, EFBIG and EDQUOT
// mean that there is no room. kIo when `data` is the mapping of a file that fails.
Status WriteAt(const UniqueFd& fd, std::span<const uint8_t> data, uint64_t offset);

// Reads all of `out` from `offset`. kIo when the file does not have the bytes or
// the host cannot read them.
Status ReadAt(const UniqueFd& fd, std::span<uint8_t> out, uint64_t offset);

struct FileRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;

  bool operator==(const FileRange&) const = default;
};

// The parts of the first `bytes` bytes of a file that are not holes, ascending.
// A file system that knows no holes gives one range.
Result<std::vector<FileRange>> FindData(const UniqueFd& fd, uint64_t bytes);

}  // namespace forklet
