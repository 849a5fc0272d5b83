#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mapping.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/page_scan.h"

namespace forklet {

// The frozen RAM of a VM: never written again, shared by all its forks.
//
// It is a base file, which forks map privately, and on top of it the pages that
// differ from the base, packed into one mapping. Freezing a VM that was booted
// makes its own memfd the base and copies nothing. Freezing a fork keeps the
// fork's base and packs the pages that it has written, so that the cost follows
// those; whoever maps such an image copies them. An image that is mapped again
// and again is flattened: a new base file with all pages in their places.
//
// Owner: shared by snapshots and by the memories that are mapped from it.
// Thread: any.
class MemoryImage : public std::enable_shared_from_this<MemoryImage> {
 public:
  enum class Backing : uint8_t {
    kMemory,  // A memfd, sealed against writing
    kDisk,    // A file, which may be truncated or fail at any time
  };

  // `base` has `bytes` bytes, which nobody writes.
  static std::shared_ptr<const MemoryImage> FromFile(std::shared_ptr<const UniqueFd> base,
                                                     uint64_t bytes, Backing backing);
  // The present contents of a private mapping of `base` at `memory`, whose pages
  // are those of the base's file but for `runs`. Copies those.
  static Result<std::shared_ptr<const MemoryImage>> FromPages(const MemoryImage& base,
                                                              const uint8_t* memory,
                                                              std::vector<PageRun> runs);

  uint64_t bytes() const { return bytes_; }
  Backing backing() const { return backing_; }
  const std::shared_ptr<const UniqueFd>& base() const { return base_; }
  // Pages that differ from the base, in order; page i of the packed ones is at
  // packed() + i * page size.
  const std::vector<PageRun>& runs() const { return runs_; }
  const uint8_t* packed() const { return packed_.data(); }
  uint64_t packed_pages() const { return packed_.size() / 4096; }

  // Maps the base privately over the `bytes()` bytes at `address`, which are a
  // mapping of the caller's. The packed pages are yet to be copied.
  Status MapBase(uint8_t* address) const;
  // The first run that ends behind `page`; their number when none does.
  size_t FirstRunBehind(uint64_t page) const;
  // Writes the packed pages that belong into `target`, whole pages that start at
  // `offset` of a private mapping of the base.
  void CopyPackedInto(std::span<uint8_t> target, uint64_t offset) const;

  // Whether the file has become shorter than the image: its end is gone.
  bool IsCutOff() const;
  // The same contents in a file without packed pages: written at the first call,
  // at the cost of all pages that are present. Thread: one that may wait.
  Result<std::shared_ptr<const MemoryImage>> Flatten() const;

 private:
  MemoryImage(std::shared_ptr<const UniqueFd> base, uint64_t bytes, Backing backing)
      : base_(std::move(base)), bytes_(bytes), backing_(backing) {}

  const std::shared_ptr<const UniqueFd> base_;
  const uint64_t bytes_;
  const Backing backing_;
  std::vector<PageRun> runs_;
  std::vector<uint64_t> packed_before_;  // For each run, how many packed pages precede it
  Mapping packed_;
};

// Reads an image from its start to its end, but for what is certainly zeros.
//
// Owner and thread: whoever reads, one.
class MemoryImageReader {
 public:
  explicit MemoryImageReader(std::shared_ptr<const MemoryImage> image) : image_(std::move(image)) {}

  // The next piece, at its offset in the image; false at the end. `data` is valid
  // until the next call.
  Result<bool> Next(uint64_t& offset, std::span<const uint8_t>& data);

 private:
  // First page at or behind `from` that the packed pages have, or the image's end.
  uint64_t NextPacked(uint64_t from) const;
  // Likewise for the base.
  Result<uint64_t> NextInBase(uint64_t from) const;

  const std::shared_ptr<const MemoryImage> image_;
  uint64_t next_ = 0;
  std::vector<uint8_t> buffer_;
};

// MADV_POPULATE_WRITE, which came with Linux 5.14 and is not in all headers.
inline constexpr int kMadvPopulateWrite = 23;

// A memfd of that size for guest RAM, which can neither shrink nor grow: every
// later access through a mapping is safe from SIGBUS.
Result<UniqueFd> CreateRamFile(uint64_t bytes);

// No child process inherits the range, and no core dump contains it. Lost with
// every mmap over the range.
Status KeepPrivate(uint8_t* address, size_t bytes);

}  // namespace forklet
