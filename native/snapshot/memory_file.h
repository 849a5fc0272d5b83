#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/fault_guard.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

// A run of guest memory at its offset in the file `memory`; both page-aligned.
struct MemoryPiece {
  uint64_t offset = 0;
  std::span<const uint8_t> data;  // Lifetime: until the next piece is asked for
};

// Gives the pieces of a frozen memory that may hold anything but zeros, with
// ascending offsets, and nothing after the last one. It may fail.
using MemorySource = std::function<Result<std::optional<MemoryPiece>>()>;

// The source of a memory that is known piece by piece. With a `guard` (or
// nullptr) the memory is a mapping under it: the source fails with kIo when the
// guard has. Lifetime: what the pieces point to and the guard outlive the source.
MemorySource SourceOf(std::vector<MemoryPiece> pieces, const FaultGuard* guard);

// Whether the caller has changed its mind; null when it never does.
// Thread: set by another one.
using CancelFlag = const std::atomic<bool>*;

// What a cancelled job returns: kSystem with ECANCELED.
Error CancelledError(const char* what);

// Writes a memory of `memory_bytes` to an empty file, and leaves holes for pages
// of zeros. Returns the checksum of each chunk (see kSnapshotChunkBytes).
Result<std::vector<uint64_t>> WriteMemoryFile(const UniqueFd& fd, uint64_t memory_bytes,
                                              const MemorySource& source, CancelFlag cancelled);

// Reads a whole memory file and compares it with its chunks' checksums.
// kBadSnapshot names the first chunk that differs.
Status VerifyMemoryFile(const UniqueFd& fd, uint64_t memory_bytes,
                        std::span<const uint64_t> checksums, CancelFlag cancelled);

}  // namespace forklet
