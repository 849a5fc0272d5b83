#include "memory/memory_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
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
    // Without it the copy below faults the pages in.
    ::madvise(image->packed_.data(), image->packed_.size(), kMadvPopulateWrite);
    uint8_t* to = image->packed_.data();
    for (const PageRun& run : runs) {
      image->packed_before_.push_back(static_cast<uint64_t>(to - image->packed_.data()) / kPage);
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

bool MemoryImage::IsCutOff() const {
  if (backing_ == Backing::kMemory) return false;  // Sealed
  struct stat status = {};
  return ::fstat(base_->get(), &status) != 0 || static_cast<uint64_t>(status.st_size) < bytes_;
}

size_t MemoryImage::FirstRunBehind(uint64_t page) const {
  const auto found = std::partition_point(runs_.begin(), runs_.end(), [page](const PageRun& run) {
    return run.first + run.count <= page;
  });
  return static_cast<size_t>(found - runs_.begin());
}

void MemoryImage::CopyPackedInto(std::span<uint8_t> target, uint64_t offset) const {
  const uint64_t begin = offset / kPage;
  const uint64_t end = begin + target.size() / kPage;
  for (size_t i = FirstRunBehind(begin); i < runs_.size() && runs_[i].first < end; ++i) {
    const PageRun& run = runs_[i];
    const uint64_t first = std::max(run.first, begin);
    const uint64_t last = std::min(run.first + run.count, end);
    std::memcpy(target.data() + (first - begin) * kPage,
                packed_.data() + (packed_before_[i] + first - run.first) * kPage,
                (last - first) * kPage);
  }
}

Result<std::shared_ptr<const MemoryImage>> MemoryImage::Flatten() const {
  ASSIGN_OR_RETURN(UniqueFd file, CreateRamFile(bytes_));
  MemoryImageReader reader(shared_from_this());
  for (;;) {
    uint64_t offset = 0;
    std::span<const uint8_t> data;
    ASSIGN_OR_RETURN(const bool more, reader.Next(offset, data));
    if (!more) break;
    TRY(WriteAll(file, data.data(), data.size(), offset));
  }
  if (::fcntl(file.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) != 0) {
    return Error{ErrorCode::kSystem, errno, "fcntl(F_ADD_SEALS)", {}};
  }
  return FromFile(std::make_shared<const UniqueFd>(std::move(file)), bytes_, Backing::kMemory);
}

uint64_t MemoryImageReader::NextPacked(uint64_t from) const {
  const size_t run = image_->FirstRunBehind(from / kPage);
  if (run == image_->runs().size()) return image_->bytes();
  return std::max(image_->runs()[run].first * kPage, from);
}

Result<uint64_t> MemoryImageReader::NextInBase(uint64_t from) const {
  const off_t data = ::lseek(image_->base()->get(), static_cast<off_t>(from), SEEK_DATA);
  if (data >= 0) return static_cast<uint64_t>(data) / kPage * kPage;
  if (errno != ENXIO) return Error{ErrorCode::kIo, errno, "lseek", "guest memory"};
  // Holes up to the end, if that is where it was.
  if (image_->IsCutOff()) return Error{ErrorCode::kIo, 0, {}, "guest memory: the file is cut off"};
  return image_->bytes();
}

// By read: a file that was truncated meanwhile gives an error, and not the SIGBUS
// that a mapping of it would.
Result<bool> MemoryImageReader::Next(uint64_t& offset, std::span<const uint8_t>& data) {
  constexpr uint64_t kPieceBytes = 1u << 20;
  if (next_ >= image_->bytes()) return false;
  ASSIGN_OR_RETURN(const uint64_t in_base, NextInBase(next_));
  offset = std::max(next_, std::min(in_base, NextPacked(next_)));
  if (offset >= image_->bytes()) return false;
  // Up to the next hole, or packed pages in one, there may be much: piece by piece.
  const off_t hole = in_base > offset
                         ? static_cast<off_t>(offset + kPage)
                         : ::lseek(image_->base()->get(), static_cast<off_t>(offset), SEEK_HOLE);
  if (hole < 0) return Error{ErrorCode::kIo, errno, "lseek", "guest memory"};
  // A file system may have smaller blocks than pages.
  const uint64_t data_end = (static_cast<uint64_t>(hole) + kPage - 1) / kPage * kPage;
  const uint64_t end = std::min({data_end, offset + kPieceBytes, image_->bytes()});
  buffer_.resize(end - offset);
  for (uint64_t done = 0; done < buffer_.size();) {
    const ssize_t got = ::pread(image_->base()->get(), buffer_.data() + done, buffer_.size() - done,
                                static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return Error{ErrorCode::kIo, got < 0 ? errno : 0, "pread", "guest memory"};
    done += static_cast<uint64_t>(got);
  }
  image_->CopyPackedInto(buffer_, offset);
  next_ = end;
  data = buffer_;
  return true;
}

}  // namespace forklet
