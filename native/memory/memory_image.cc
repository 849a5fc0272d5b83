#include "memory/memory_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "arch/x86_64/layout.h"

namespace forklet {

namespace {

constexpr uint64_t kPage = layout::kPageSize;

Status WriteAll(const UniqueFd& file, const uint8_t* data, size_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t written = ::pwrite(file.get(), data, bytes, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      return Error{errno == ENOSPC || errno == ENOMEM ? ErrorCode::kNoMemory : ErrorCode::kSystem,
                   errno, "pwrite", "guest memory"};
    }
    data += written;
    bytes -= static_cast<size_t>(written);
    offset += static_cast<uint64_t>(written);
  }
  return Ok();
}

// By read and write: a file that was truncated meanwhile gives an error, and not
// the SIGBUS that a mapping of it would.
Status CopyRange(const UniqueFd& from, const UniqueFd& to, off_t next, off_t end) {
  constexpr off_t kChunk = 1 << 20;
  std::vector<uint8_t> buffer(static_cast<size_t>(std::min(kChunk, end - next)));
  while (next < end) {
    const auto want = static_cast<size_t>(std::min(kChunk, end - next));
    const ssize_t got = ::pread(from.get(), buffer.data(), want, next);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return Error{ErrorCode::kSystem, got < 0 ? errno : EIO, "pread", "guest memory"};
    TRY(WriteAll(to, buffer.data(), static_cast<size_t>(got), static_cast<uint64_t>(next)));
    next += got;
  }
  return Ok();
}

// Copies the parts of `from` that are not holes.
Status CopyData(const UniqueFd& from, const UniqueFd& to, uint64_t bytes) {
  off_t next = 0;
  while (static_cast<uint64_t>(next) < bytes) {
    const off_t data = ::lseek(from.get(), next, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // Holes up to the end
    const off_t hole = data < 0 ? -1 : ::lseek(from.get(), data, SEEK_HOLE);
    if (hole < 0) return Error{ErrorCode::kSystem, errno, "lseek", "guest memory"};
    TRY(CopyRange(from, to, data, hole));
    next = hole;
  }
  return Ok();
}

}  // namespace

Result<UniqueFd> CreateRamFile(uint64_t bytes) {
  UniqueFd file(::memfd_create("forklet-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file) return Error{ErrorCode::kSystem, errno, "memfd_create", {}};
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    return Error{ErrorCode::kNoMemory, errno, "ftruncate",
                 "guest memory of " + std::to_string(bytes) + " bytes"};
  }
  if (::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return Error{ErrorCode::kSystem, errno, "fcntl(F_ADD_SEALS)", {}};
  }
  return file;
}

Status KeepPrivate(uint8_t* address, size_t bytes) {
  if (::madvise(address, bytes, MADV_DONTFORK) != 0 ||
      ::madvise(address, bytes, MADV_DONTDUMP) != 0) {
    return Error{ErrorCode::kSystem, errno, "madvise", {}};
  }
  return Ok();
}

std::shared_ptr<const MemoryImage> MemoryImage::FromFile(std::shared_ptr<const UniqueFd> base,
                                                         uint64_t bytes, Backing backing) {
  return std::shared_ptr<const MemoryImage>(new MemoryImage(std::move(base), bytes, backing));
}

Result<std::shared_ptr<const MemoryImage>> MemoryImage::FromPages(const MemoryImage& base,
                                                                  const uint8_t* memory,
                                                                  std::vector<PageRun> runs) {
  const uint64_t pages = CountPages(runs);
  std::shared_ptr<MemoryImage> image(new MemoryImage(base.base_, base.bytes_, base.backing_));
  if (pages > 0) {
    // Populated in one go: a fault a page would cost more than the copy.
    ASSIGN_OR_RETURN(image->packed_,
                     Mapping::Create(UniqueFd(), pages * kPage, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, 0));
    TRY(KeepPrivate(image->packed_.data(), image->packed_.size()));
    // Linux 5.14; without it the copy below faults the pages in.
    constexpr int kMadvPopulateWrite = 23;
    ::madvise(image->packed_.data(), image->packed_.size(), kMadvPopulateWrite);
    uint8_t* to = image->packed_.data();
    for (const PageRun& run : runs) {
      std::memcpy(to, memory + run.first * kPage, run.count * kPage);
      to += run.count * kPage;
    }
    if (::mprotect(image->packed_.data(), image->packed_.size(), PROT_READ) != 0) {
      return Error{ErrorCode::kSystem, errno, "mprotect", {}};
    }
  }
  image->runs_ = std::move(runs);
  return std::shared_ptr<const MemoryImage>(std::move(image));
}

Status MemoryImage::MapBase(uint8_t* address) const {
  if (::mmap(address, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
             base_->get(), 0) == MAP_FAILED) {
    return Error{errno == ENOMEM ? ErrorCode::kNoMemory : ErrorCode::kSystem, errno, "mmap",
                 std::to_string(bytes_) + " bytes of a snapshot"};
  }
  return KeepPrivate(address, bytes_);
}

void MemoryImage::CopyPacked(uint8_t* address) const {
  const uint8_t* from = packed_.data();
  for (const PageRun& run : runs_) {
    std::memcpy(address + run.first * kPage, from, run.count * kPage);
    from += run.count * kPage;
  }
}

void MemoryImage::CopyPacked(uint8_t* address, PageRun pages) const {
  const uint64_t end = pages.first + pages.count;
  const uint8_t* from = packed_.data();
  for (const PageRun& run : runs_) {
    if (run.first >= end) return;
    const uint64_t first = std::max(run.first, pages.first);
    const uint64_t last = std::min(run.first + run.count, end);
    if (first < last) {
      std::memcpy(address + first * kPage, from + (first - run.first) * kPage,
                  (last - first) * kPage);
    }
    from += run.count * kPage;
  }
}

Result<std::shared_ptr<const MemoryImage>> MemoryImage::Flatten() const {
  ASSIGN_OR_RETURN(UniqueFd file, CreateRamFile(bytes_));
  TRY(CopyData(*base_, file, bytes_));
  const uint8_t* from = packed_.data();
  for (const PageRun& run : runs_) {
    TRY(WriteAll(file, from, run.count * kPage, run.first * kPage));
    from += run.count * kPage;
  }
  if (::fcntl(file.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) != 0) {
    return Error{ErrorCode::kSystem, errno, "fcntl(F_ADD_SEALS)", {}};
  }
  return FromFile(std::make_shared<const UniqueFd>(std::move(file)), bytes_, Backing::kMemory);
}

}  // namespace forklet
