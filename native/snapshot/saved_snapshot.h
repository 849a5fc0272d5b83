// Snapshots on disk: docs/snapshot-format.md describes the directory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "snapshot/memory_file.h"
#include "snapshot/state_file.h"

namespace forklet {

// What there is to save of a snapshot.
struct SnapshotContents {
  SnapshotConfig config;
  std::vector<uint8_t> cpu;
  std::vector<uint8_t> devices;
  std::vector<uint8_t> session;
  std::vector<uint8_t> manifest;  // For people: the text of `manifest.json`
};

// Saves a snapshot to a directory, whose parent must exist: complete and on disk,
// or not at all. On any failure a snapshot that was there before is whole.
//
// Takes as long as the disk does: for a thread that may wait.
//
// kExists: the directory exists, and `overwrite` is not set or it holds something
// else than a snapshot. kSystem: see errno and op, such as ENOSPC; ECANCELED when
// `cancelled` was set. What `source` fails with.
Status SaveSnapshot(const std::string& directory, bool overwrite, const SnapshotContents& contents,
                    const MemorySource& source, CancelFlag cancelled);

// A snapshot that was loaded. Its parts are whole, but come from whoever wrote
// them: each has to be checked by what it is given to.
struct LoadedSnapshot {
  std::string directory;  // As it was given, for messages
  SnapshotContents contents;
  UniqueFd memory;  // The file, of config.memory_bytes bytes, read-only
  std::vector<uint64_t> chunk_checksums;
};

// Reads everything but the memory, whose file is opened only: map it privately,
// under a FaultGuard.
//
// kBadSnapshot says what is wrong with the directory; kIo: the host cannot read it.
Result<LoadedSnapshot> LoadSnapshot(const std::string& directory);

// Reads the memory as well, all of it. Errors as LoadSnapshot, and kSystem with
// ECANCELED.
Status VerifySnapshot(const LoadedSnapshot& snapshot, CancelFlag cancelled);

}  // namespace forklet
