#include "snapshot/directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace forklet {

namespace {

constexpr int kMaxAttempts = 16;
// Room for a prefix and a suffix within NAME_MAX.
constexpr size_t kMaxNameBytes = 200;
constexpr size_t kSuffixDigits = 16;

Error System(const char* op, std::string detail) {
  return Error{ErrorCode::kSystem, errno, op, std::move(detail)};
}

Result<UniqueFd> OpenDirectory(const UniqueFd* parent, const std::string& name, int flags) {
  UniqueFd fd(::openat(parent == nullptr ? AT_FDCWD : parent->get(), name.c_str(),
                       O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags));
  if (!fd) return System("open", "'" + name + "'");
  return fd;
}

// The names in a directory but for `.` and `..`.
Result<std::vector<std::string>> List(const UniqueFd& directory) {
  // A descriptor of its own: the stream owns it, and moves its position.
  const int fd = ::openat(directory.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* stream = fd < 0 ? nullptr : ::fdopendir(fd);
  if (stream == nullptr) {
    Error error = System("opendir", {});
    if (fd >= 0) ::close(fd);
    return error;
  }
  std::vector<std::string> names;
  errno = 0;
  // Safe: the stream is this thread's alone.
  while (const dirent* entry = ::readdir(stream)) {  // NOLINT(concurrency-mt-unsafe)
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  const int error = errno;
  ::closedir(stream);
  if (error != 0) return Error{ErrorCode::kSystem, error, "readdir", {}};
  return names;
}

bool IsSnapshotFile(const std::string& name) {
  return name == kStateFile || name == kMemoryFile || name == kManifestFile;
}

// Removes a snapshot's files and their directory; whatever else is in it stays,
// and so does the directory then. What is gone already is fine.
void RemoveSnapshot(const UniqueFd& parent, const std::string& name) {
  auto directory = OpenDirectory(&parent, name, O_NOFOLLOW);
  if (!directory.ok()) return;
  for (const char* file : {kStateFile, kMemoryFile, kManifestFile}) {
    ::unlinkat(directory.value().get(), file, 0);
  }
  ::unlinkat(parent.get(), name.c_str(), AT_REMOVEDIR);
}

// The names of all staged directories for one target begin so.
std::string StagedPrefix(const std::string& name) {
  return "." + name.substr(0, kMaxNameBytes) + ".tmp-";
}

bool IsStagedName(const std::string& name, const std::string& prefix) {
  return name.size() == prefix.size() + kSuffixDigits &&
         name.compare(0, prefix.size(), prefix) == 0;
}

// Removes what processes that died have left behind. At best: what cannot be
// removed is in nobody's way.
void RemoveLeftovers(const UniqueFd& parent, const std::string& prefix) {
  auto names = List(parent);
  if (!names.ok()) return;
  for (const std::string& name : names.value()) {
    if (!IsStagedName(name, prefix)) continue;
    auto directory = OpenDirectory(&parent, name, O_NOFOLLOW);
    struct stat info;
    if (!directory.ok() || ::fstat(directory.value().get(), &info) != 0 ||
        info.st_uid != ::geteuid()) {
      continue;
    }
    // Held by whoever is writing it, and released when that process ends.
    if (::flock(directory.value().get(), LOCK_EX | LOCK_NB) != 0) continue;
    RemoveSnapshot(parent, name);
  }
}

// Whether an error of a file's is about that file and not about this process.
bool IsAboutFile(int error) {
  return error == ENOENT || error == ENOTDIR || error == ELOOP || error == EACCES ||
         error == EPERM || error == ENAMETOOLONG || error == ENXIO;
}

Error OpenError(const std::string& what) {
  Error error = System("open", what);
  if (IsAboutFile(error.sys_errno)) error.code = ErrorCode::kBadSnapshot;
  return error;
}

Error BadFile(const std::string& what, const std::string& fault) {
  return Error{ErrorCode::kBadSnapshot, 0, "", what + fault};
}

// Whoever can write to a snapshot decides what its VMs do.
Status CheckOwner(const struct stat& info, const std::string& what) {
  // Root can do as it likes anyway.
  if (info.st_uid != ::geteuid() && info.st_uid != 0) {
    return BadFile(what, " belongs to user " + std::to_string(info.st_uid) +
                             ", and not to this process's user or root");
  }
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return BadFile(what, " can be written to by others: chmod go-w");
  }
  return Ok();
}

}  // namespace

Result<StagedDirectory> StagedDirectory::Create(const std::string& target, bool overwrite) {
  std::string path = target;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  const std::string parent_path = slash == std::string::npos ? "."
                                  : slash == 0               ? "/"
                                                             : path.substr(0, slash);
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty() || name == "." || name == "..") {
    return Error{ErrorCode::kSystem, EINVAL, "",
                 "'" + target + "' does not name a directory to save to"};
  }
  ASSIGN_OR_RETURN(UniqueFd parent, OpenDirectory(nullptr, parent_path, 0));
  StagedDirectory staged(target, std::move(parent), name, overwrite);
  // Before anything is written, which may take long. Commit looks again.
  TRY(staged.CheckTarget());
  RemoveLeftovers(staged.parent_, StagedPrefix(name));
  TRY(staged.MakeDirectory());
  return staged;
}

StagedDirectory::~StagedDirectory() {
  if (!staged_.empty()) RemoveSnapshot(parent_, staged_);
}

Status StagedDirectory::CheckTarget() const {
  struct stat info;
  if (::fstatat(parent_.get(), name_.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return Ok();
    return System("stat", "'" + target_ + "'");
  }
  if (!overwrite_) return Error{ErrorCode::kExists, EEXIST, "", "'" + target_ + "'"};
  if (!S_ISDIR(info.st_mode)) {
    return Error{ErrorCode::kExists, ENOTDIR, "", "'" + target_ + "' cannot be overwritten"};
  }
  ASSIGN_OR_RETURN(const UniqueFd directory, OpenDirectory(&parent_, name_, O_NOFOLLOW));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, List(directory));
  for (const std::string& name : names) {
    if (IsSnapshotFile(name)) continue;
    return Error{ErrorCode::kExists, ENOTEMPTY, "",
                 "'" + target_ + "' is not only a snapshot, since it has '" + name +
                     "' in it, and so it is not overwritten"};
  }
  return Ok();
}

Status StagedDirectory::MakeDirectory() {
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    uint64_t random = 0;
    if (::getrandom(&random, sizeof random, 0) != sizeof random) return System("getrandom", {});
    char suffix[kSuffixDigits + 1];
    std::snprintf(suffix, sizeof suffix, "%016llx", static_cast<unsigned long long>(random));
    const std::string staged = StagedPrefix(name_) + suffix;
    if (::mkdirat(parent_.get(), staged.c_str(), 0700) != 0) {
      if (errno == EEXIST) continue;
      return System("mkdir", "beside '" + target_ + "'");
    }
    staged_ = staged;
    auto directory = OpenDirectory(&parent_, staged_, O_NOFOLLOW);
    // Taken for a leftover already, see below.
    if (!directory.ok() && directory.error().sys_errno == ENOENT) continue;
    ASSIGN_OR_RETURN(directory_, std::move(directory));
    // Whatever the umask left of the mode above.
    if (::fchmod(directory_.get(), 0700) != 0) return System("fchmod", {});
    // A file system without locks has no cleaners that hold them either: none of
    // the directories on it is ever taken for a leftover.
    while (::flock(directory_.get(), LOCK_EX) != 0 && errno != ENOLCK && errno != EOPNOTSUPP) {
      if (errno != EINTR) return System("flock", {});
    }
    // Somebody may have taken it for a leftover before it was locked.
    struct stat info;
    if (::fstat(directory_.get(), &info) != 0) return System("fstat", {});
    if (info.st_nlink > 0) return Ok();
    staged_.clear();
  }
  return Error{ErrorCode::kSystem, EEXIST, "mkdir", "beside '" + target_ + "'"};
}

Result<UniqueFd> StagedDirectory::CreateFile(const char* name) const {
  CHECK(IsSnapshotFile(name));
  UniqueFd fd(
      ::openat(directory_.get(), name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd || ::fchmod(fd.get(), 0600) != 0) return System("open", "'" + std::string(name) + "'");
  return fd;
}

Status StagedDirectory::Commit() {
  if (::fsync(directory_.get()) != 0) return System("fsync", {});
  TRY(Rename());
  if (::fsync(parent_.get()) != 0) return System("fsync", {});
  // The old one, which an exchange has left under our name; nothing otherwise.
  RemoveSnapshot(parent_, staged_);
  staged_.clear();
  return Ok();
}

Status StagedDirectory::Rename() {
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    TRY(CheckTarget());
    const auto rename_with = [this](unsigned flags) {
      return ::renameat2(parent_.get(), staged_.c_str(), parent_.get(), name_.c_str(), flags) == 0;
    };
    if (rename_with(RENAME_NOREPLACE)) return Ok();
    if (errno == EINVAL) {
      // A file system without the flag. Without it, too, a directory replaces
      // nothing but an empty directory.
      if (rename_with(0)) return Ok();
    }
    if (errno != EEXIST && errno != ENOTEMPTY) return System("rename", "to '" + target_ + "'");
    if (!overwrite_) return Error{ErrorCode::kExists, EEXIST, "", "'" + target_ + "'"};
    if (rename_with(RENAME_EXCHANGE)) return Ok();
    // ENOENT: somebody has removed it in between.
    if (errno != ENOENT) {
      return System("rename", "in exchange for '" + target_ +
                                  "'; if its file system cannot do that, remove it first");
    }
  }
  return Error{ErrorCode::kSystem, EBUSY, "rename", "'" + target_ + "' comes and goes"};
}

Result<UniqueFd> OpenSnapshotDirectory(const std::string& directory) {
  const std::string what = "the directory";
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return OpenError(what);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return System("fstat", what);
  TRY(CheckOwner(info, what));
  return fd;
}

Result<UniqueFd> OpenSnapshotFile(const UniqueFd& directory, const char* name, uint64_t& bytes) {
  const std::string what = "'" + std::string(name) + "'";
  // Non-blocking: opening a FIFO that somebody put there must not wait.
  UniqueFd fd(::openat(directory.get(), name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return OpenError(what);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return System("fstat", what);
  if (!S_ISREG(info.st_mode)) return BadFile(what, " is no regular file");
  TRY(CheckOwner(info, what));
  bytes = static_cast<uint64_t>(info.st_size);
  return fd;
}

}  // namespace forklet
