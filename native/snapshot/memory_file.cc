#include "snapshot/memory_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/file_io.h"
#include "base/xxhash64.h"
#include "snapshot/state_file.h"

namespace forklet {

namespace {

constexpr uint64_t kPageBytes = 4096;
// Most that is written, or read, between two looks at the caller's mind.
constexpr uint64_t kStepBytes = 1u << 20;

bool IsCancelled(CancelFlag cancelled) {
  return cancelled != nullptr && cancelled->load(std::memory_order_relaxed);
}

bool IsZero(std::span<const uint8_t> page) {
  // The page equals itself moved by one byte, and that byte is zero.
  return page[0] == 0 && std::memcmp(page.data(), page.data() + 1, page.size() - 1) == 0;
}

// Checksums of a memory's chunks, from its bytes in order.
class ChunkHasher {
 public:
  explicit ChunkHasher(uint64_t memory_bytes) : left_(memory_bytes) {
    checksums_.reserve(SnapshotChunks(memory_bytes));
    StartChunk();
  }

  void Add(std::span<const uint8_t> data) {
    while (!data.empty()) {
      const std::span<const uint8_t> part = data.first(std::min<size_t>(data.size(), chunk_left_));
      hash_.Update(part);
      data = data.subspan(part.size());
      Advance(part.size());
    }
  }

  void AddZeros(uint64_t bytes) {
    while (bytes > 0) {
      const uint64_t part = std::min(bytes, chunk_left_);
      if (part == kSnapshotChunkBytes) {
        hash_ = AllZeros();
      } else {
        for (uint64_t done = 0; done < part; done += sizeof kZeros) {
          hash_.Update(std::span(kZeros).first(std::min<uint64_t>(part - done, sizeof kZeros)));
        }
      }
      bytes -= part;
      Advance(part);
    }
  }

  // After exactly the memory's bytes.
  std::vector<uint64_t> Take() && {
    CHECK(left_ == 0);
    return std::move(checksums_);
  }

 private:
  static constexpr uint8_t kZeros[kPageBytes] = {};

  // The hash of a whole chunk of zeros, of which sparse memories are full.
  static Xxhash64 AllZeros() {
    static const Xxhash64 hash = [] {
      Xxhash64 zeros;
      for (uint64_t done = 0; done < kSnapshotChunkBytes; done += sizeof kZeros) {
        zeros.Update(kZeros);
      }
      return zeros;
    }();
    return hash;
  }

  void StartChunk() {
    hash_ = Xxhash64();
    chunk_left_ = std::min(left_, kSnapshotChunkBytes);
  }
  void Advance(uint64_t bytes) {
    left_ -= bytes;
    chunk_left_ -= bytes;
    if (chunk_left_ > 0) return;
    checksums_.push_back(hash_.Digest());
    StartChunk();
  }

  uint64_t left_;  // Of the memory
  uint64_t chunk_left_ = 0;
  Xxhash64 hash_;
  std::vector<uint64_t> checksums_;
};

// Writes what is not zero of one step, as few and as large runs.
Status WriteStep(const UniqueFd& fd, const MemoryPiece& step, ChunkHasher& hasher) {
  uint64_t run_start = 0;  // Of the pages that are not written yet
  uint64_t position = 0;
  const auto flush = [&]() -> Status {
    const auto run = step.data.subspan(run_start, position - run_start);
    hasher.Add(run);
    return WriteAt(fd, run, step.offset + run_start);
  };
  for (; position < step.data.size(); position += kPageBytes) {
    if (!IsZero(step.data.subspan(position, kPageBytes))) continue;
    TRY(flush());
    hasher.AddZeros(kPageBytes);
    run_start = position + kPageBytes;
  }
  return flush();
}

}  // namespace

MemorySource SourceOf(std::vector<MemoryPiece> pieces, const FaultGuard* guard) {
  return [pieces = std::move(pieces), guard,
          next = size_t{0}]() mutable -> Result<std::optional<MemoryPiece>> {
    // Also after the last piece: it was zeros that were read, then.
    if (guard != nullptr && guard->failed()) {
      return Error{ErrorCode::kIo, 0, "", "the file behind the snapshot's memory failed"};
    }
    if (next == pieces.size()) return std::optional<MemoryPiece>();
    return std::optional(pieces[next++]);
  };
}

Error CancelledError(const char* what) {
  return Error{ErrorCode::kSystem, ECANCELED, "", std::string(what) + " was cancelled"};
}

Result<std::vector<uint64_t>> WriteMemoryFile(const UniqueFd& fd, uint64_t memory_bytes,
                                              const MemorySource& source, CancelFlag cancelled) {
  ChunkHasher hasher(memory_bytes);
  uint64_t done = 0;  // Offset behind what was hashed
  for (;;) {
    if (IsCancelled(cancelled)) return CancelledError("saving");
    ASSIGN_OR_RETURN(std::optional<MemoryPiece> piece, source());
    if (!piece) break;
    // The pieces come from our own memory, so that anything else is our bug.
    CHECK(piece->offset >= done && piece->offset % kPageBytes == 0 &&
          piece->data.size() % kPageBytes == 0 && piece->offset <= memory_bytes &&
          piece->data.size() <= memory_bytes - piece->offset);
    hasher.AddZeros(piece->offset - done);
    done = piece->offset;
    while (!piece->data.empty()) {
      if (IsCancelled(cancelled)) return CancelledError("saving");
      const uint64_t bytes = std::min<uint64_t>(piece->data.size(), kStepBytes);
      TRY(WriteStep(fd, {done, piece->data.first(bytes)}, hasher));
      piece->data = piece->data.subspan(bytes);
      done += bytes;
    }
  }
  hasher.AddZeros(memory_bytes - done);
  // The end may be a hole as well.
  if (::ftruncate(fd.get(), static_cast<off_t>(memory_bytes)) != 0) {
    return Error{ErrorCode::kSystem, errno, "ftruncate", {}};
  }
  return std::move(hasher).Take();
}

Status VerifyMemoryFile(const UniqueFd& fd, uint64_t memory_bytes,
                        std::span<const uint64_t> checksums, CancelFlag cancelled) {
  CHECK(checksums.size() == SnapshotChunks(memory_bytes));
  ASSIGN_OR_RETURN(const std::vector<FileRange> ranges, FindData(fd, memory_bytes));
  ChunkHasher hasher(memory_bytes);
  std::vector<uint8_t> buffer(kStepBytes);
  uint64_t done = 0;
  for (const FileRange& range : ranges) {
    hasher.AddZeros(range.offset - done);
    done = range.offset;
    while (done < range.offset + range.bytes) {
      if (IsCancelled(cancelled)) return CancelledError("verifying");
      const uint64_t bytes = std::min<uint64_t>(range.offset + range.bytes - done, kStepBytes);
      TRY(ReadAt(fd, std::span(buffer).first(bytes), done));
      hasher.Add(std::span(buffer).first(bytes));
      done += bytes;
    }
  }
  hasher.AddZeros(memory_bytes - done);

  const std::vector<uint64_t> found = std::move(hasher).Take();
  const auto wrong = std::mismatch(found.begin(), found.end(), checksums.begin()).first;
  if (wrong == found.end()) return Ok();
  const auto offset = static_cast<uint64_t>(wrong - found.begin()) * kSnapshotChunkBytes;
  return Error{ErrorCode::kBadSnapshot, 0, "",
               "memory: wrong checksum of the chunk at byte " + std::to_string(offset) +
                   ": the file was damaged or changed"};
}

}  // namespace forklet
