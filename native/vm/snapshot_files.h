#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "base/result.h"
#include "vm/messages.h"
#include "vm/snapshot.h"

namespace forklet {

// Saves a snapshot to a directory; see SaveSnapshot. kCancelled when `cancelled`
// was set. Thread: one that may wait for a disk.
Status SaveToDirectory(const Snapshot& snapshot, const std::string& directory, bool overwrite,
                       Bytes session, const std::atomic<bool>& cancelled);

struct SnapshotFromDirectory {
  std::shared_ptr<Snapshot> snapshot;
  Bytes session;
};

// Loads one, and makes a fork of it, so that a state which nobody can restore is
// refused here and not later. With `verify` every byte of its memory is checked
// first. Thread: one that may wait for a disk.
Result<SnapshotFromDirectory> LoadFromDirectory(const std::string& kvm_path,
                                                const std::string& directory, bool verify,
                                                const std::atomic<bool>& cancelled);

}  // namespace forklet
