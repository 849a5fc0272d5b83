#pragma once

#include <sys/stat.h>

#include <string>
#include <utility>

#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

// The files of a saved snapshot, and the only ones in its directory.
inline constexpr const char* kStateFile = "state";
inline constexpr const char* kMemoryFile = "memory";
inline constexpr const char* kManifestFile = "manifest.json";

// A directory that takes shape beside its target, under a name of its own, and
// takes the target's place in one step when it is complete.
//
// While it exists its directory is locked (flock(2)), by which a later one for
// the same target knows those that were left behind by a process that died from
// those that are being written: Create removes the former.
//
// Owner and thread: one job.
class StagedDirectory {
 public:
  // Fails with kExists when `target` exists and `overwrite` is not set, or when
  // it is nothing that may be overwritten: only an empty directory or one with
  // nothing but a snapshot's files is. The target's parent must exist.
  static Result<StagedDirectory> Create(const std::string& target, bool overwrite);

  StagedDirectory(StagedDirectory&& other) noexcept
      : target_(std::move(other.target_)),
        parent_(std::move(other.parent_)),
        name_(std::move(other.name_)),
        staged_(std::exchange(other.staged_, {})),
        directory_(std::move(other.directory_)),
        overwrite_(other.overwrite_) {}
  StagedDirectory& operator=(StagedDirectory&&) = delete;
  // Removes everything, unless it was committed.
  ~StagedDirectory();

  // A new file, for its owner alone, to be closed before Commit. `name` is one of
  // the three above.
  Result<UniqueFd> CreateFile(const char* name) const;

  // Puts the directory in the target's place, durably. With `overwrite` an old
  // one there is replaced without a moment in which there is neither, and
  // removed. On failure the target is what it was, unless it was the parent that
  // could not be synced. The files must be on disk already (fsync).
  Status Commit();

 private:
  StagedDirectory(std::string target, UniqueFd parent, std::string name, bool overwrite)
      : target_(std::move(target)),
        parent_(std::move(parent)),
        name_(std::move(name)),
        overwrite_(overwrite) {}

  Status CheckTarget() const;
  Status MakeDirectory();
  Status Rename();

  std::string target_;  // As the caller gave it, for messages
  UniqueFd parent_;
  std::string name_;    // The target's, in the parent
  std::string staged_;  // This directory's, in the parent; empty once there is none
  UniqueFd directory_;  // Holds the lock
  bool overwrite_ = false;
};

// Opens the directory of a saved snapshot, and one of the files in it, for
// reading. kBadSnapshot when it is missing, not of that kind, a symbolic link
// (files), of another owner than this user or root, or writable by anybody but
// the owner.
Result<UniqueFd> OpenSnapshotDirectory(const std::string& directory);
Result<UniqueFd> OpenSnapshotFile(const UniqueFd& directory, const char* name, uint64_t& bytes);

}  // namespace forklet
