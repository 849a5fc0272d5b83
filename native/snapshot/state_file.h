#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace forklet {

// The format of a saved snapshot (docs/snapshot-format.md). Raised with every
// change of meaning; a reader takes its own version only.
inline constexpr uint32_t kSnapshotVersion = 1;

// Unit in which the memory's checksums are kept, in bytes.
inline constexpr uint64_t kSnapshotChunkBytes = 1u << 20;

// A part of guest memory and where it is in the file `memory`.
struct SnapshotRegion {
  uint64_t start = 0;  // Guest-physical address
  uint64_t bytes = 0;
  uint64_t file_offset = 0;

  bool operator==(const SnapshotRegion&) const = default;
};

// What a VM has to be built like before its state can be restored.
struct SnapshotConfig {
  uint64_t memory_bytes = 0;  // Size of the file `memory`
  uint32_t vcpus = 0;
  std::vector<SnapshotRegion> regions;  // By address, ascending; all of the file

  bool operator==(const SnapshotConfig&) const = default;
};

// The contents of the file `state`.
struct SnapshotState {
  SnapshotConfig config;
  // Opaque here, each to be checked by whoever wrote it.
  std::vector<uint8_t> cpu;      // vCPUs, interrupt controllers, clock
  std::vector<uint8_t> devices;  // See device_state.h
  std::vector<uint8_t> session;  // TypeScript's: the agent connection's state
  // Of the file `manifest.json`.
  uint64_t manifest_bytes = 0;
  uint64_t manifest_checksum = 0;
  std::vector<uint64_t> chunk_checksums;  // Of the file `memory`

  bool operator==(const SnapshotState&) const = default;
};

// Bounds, in bytes.
inline constexpr uint64_t kMaxSnapshotMemoryBytes = uint64_t{1} << 40;
inline constexpr size_t kMaxCpuStateBytes = 16u << 20;
inline constexpr size_t kMaxDeviceStateBytes = 80u << 20;
inline constexpr size_t kMaxSessionBytes = 64u << 20;
inline constexpr size_t kMaxManifestBytes = 64u << 10;
// Of the file `state`: the above, checksums, and room for the rest.
inline constexpr size_t kMaxStateFileBytes =
    kMaxCpuStateBytes + kMaxDeviceStateBytes + kMaxSessionBytes +
    kMaxSnapshotMemoryBytes / kSnapshotChunkBytes * 8 + (64u << 10);

// Number of chunks of a memory of that size; the last one may be short.
constexpr uint64_t SnapshotChunks(uint64_t memory_bytes) {
  return (memory_bytes + kSnapshotChunkBytes - 1) / kSnapshotChunkBytes;
}

// Fails with kInternal when a part exceeds its bound: nobody could read it.
Result<std::vector<uint8_t>> EncodeSnapshotState(const SnapshotState& state);

// Takes apart bytes that anybody may have written. kBadSnapshot, with what is
// wrong, unless they are exactly what EncodeSnapshotState makes; no allocation
// is larger than the input, but for a constant factor.
Result<SnapshotState> ParseSnapshotState(std::span<const uint8_t> file);

}  // namespace forklet
