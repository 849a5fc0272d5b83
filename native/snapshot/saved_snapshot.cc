#include "snapshot/saved_snapshot.h"

#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/file_io.h"
#include "base/xxhash64.h"
#include "snapshot/directory.h"

namespace forklet {

namespace {

Status Sync(const UniqueFd& fd) {
  if (::fsync(fd.get()) != 0) return Error{ErrorCode::kSystem, errno, "fsync", {}};
  return Ok();
}

Status SaveFile(const StagedDirectory& staged, const char* name, std::span<const uint8_t> data) {
  ASSIGN_OR_RETURN(const UniqueFd fd, staged.CreateFile(name));
  TRY(WriteAt(fd, data, 0));
  return Sync(fd);
}

Result<std::vector<uint64_t>> SaveMemory(const StagedDirectory& staged, uint64_t memory_bytes,
                                         const MemorySource& source, CancelFlag cancelled) {
  ASSIGN_OR_RETURN(const UniqueFd fd, staged.CreateFile(kMemoryFile));
  ASSIGN_OR_RETURN(std::vector<uint64_t> checksums,
                   WriteMemoryFile(fd, memory_bytes, source, cancelled));
  TRY(Sync(fd));
  return checksums;
}

Status SaveTo(StagedDirectory& staged, const SnapshotContents& contents, const MemorySource& source,
              CancelFlag cancelled) {
  SnapshotState state;
  state.config = contents.config;
  state.cpu = contents.cpu;
  state.devices = contents.devices;
  state.session = contents.session;
  state.manifest_bytes = contents.manifest.size();
  state.manifest_checksum = Xxhash64::Of(contents.manifest);
  ASSIGN_OR_RETURN(state.chunk_checksums,
                   SaveMemory(staged, contents.config.memory_bytes, source, cancelled));
  ASSIGN_OR_RETURN(const std::vector<uint8_t> encoded, EncodeSnapshotState(state));
  // What could not be loaded again is not worth a directory.
  TRY(ParseSnapshotState(encoded));
  TRY(SaveFile(staged, kManifestFile, contents.manifest));
  TRY(SaveFile(staged, kStateFile, encoded));
  if (cancelled != nullptr && cancelled->load()) return CancelledError("saving");
  return staged.Commit();
}

// A whole file of at most `max_bytes`.
Result<std::vector<uint8_t>> LoadFile(const UniqueFd& directory, const char* name,
                                      uint64_t max_bytes) {
  uint64_t bytes = 0;
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenSnapshotFile(directory, name, bytes));
  if (bytes > max_bytes) {
    return Error{ErrorCode::kBadSnapshot, 0, "",
                 "'" + std::string(name) + "' is too large: " + std::to_string(bytes) + " bytes"};
  }
  std::vector<uint8_t> contents(bytes);
  TRY(ReadAt(fd, contents, 0));
  return contents;
}

Result<LoadedSnapshot> LoadFrom(const std::string& directory_name) {
  ASSIGN_OR_RETURN(const UniqueFd directory, OpenSnapshotDirectory(directory_name));
  ASSIGN_OR_RETURN(const std::vector<uint8_t> encoded,
                   LoadFile(directory, kStateFile, kMaxStateFileBytes));
  ASSIGN_OR_RETURN(SnapshotState state, ParseSnapshotState(encoded));

  LoadedSnapshot snapshot;
  ASSIGN_OR_RETURN(snapshot.contents.manifest,
                   LoadFile(directory, kManifestFile, kMaxManifestBytes));
  if (snapshot.contents.manifest.size() != state.manifest_bytes ||
      Xxhash64::Of(snapshot.contents.manifest) != state.manifest_checksum) {
    return Error{ErrorCode::kBadSnapshot, 0, "",
                 std::string(kManifestFile) + ": wrong checksum: the file was damaged or changed"};
  }
  uint64_t memory_bytes = 0;
  ASSIGN_OR_RETURN(snapshot.memory, OpenSnapshotFile(directory, kMemoryFile, memory_bytes));
  if (memory_bytes != state.config.memory_bytes) {
    return Error{ErrorCode::kBadSnapshot, 0, "",
                 "memory: the file has " + std::to_string(memory_bytes) + " bytes instead of " +
                     std::to_string(state.config.memory_bytes)};
  }
  snapshot.contents.config = std::move(state.config);
  snapshot.contents.cpu = std::move(state.cpu);
  snapshot.contents.devices = std::move(state.devices);
  snapshot.contents.session = std::move(state.session);
  snapshot.chunk_checksums = std::move(state.chunk_checksums);
  return snapshot;
}

// The failures inside name the file only.
Error About(const std::string& directory, Error error) {
  if (error.code == ErrorCode::kBadSnapshot || error.code == ErrorCode::kIo) {
    const std::string rest = error.detail.empty() ? "" : ": " + error.detail;
    error.detail = "snapshot '" + directory + "'" + rest;
  }
  return error;
}

}  // namespace

Status SaveSnapshot(const std::string& directory, bool overwrite, const SnapshotContents& contents,
                    const MemorySource& source, CancelFlag cancelled) {
  if (contents.manifest.size() > kMaxManifestBytes) {
    return Error{ErrorCode::kInternal, 0, "", "the manifest is too large"};
  }
  ASSIGN_OR_RETURN(StagedDirectory staged, StagedDirectory::Create(directory, overwrite));
  return SaveTo(staged, contents, source, cancelled);
}

Result<LoadedSnapshot> LoadSnapshot(const std::string& directory) {
  auto result = LoadFrom(directory);
  if (!result.ok()) return About(directory, std::move(result).error());
  result.value().directory = directory;
  return result;
}

Status VerifySnapshot(const LoadedSnapshot& snapshot, CancelFlag cancelled) {
  Status status = VerifyMemoryFile(snapshot.memory, snapshot.contents.config.memory_bytes,
                                   snapshot.chunk_checksums, cancelled);
  if (!status.ok()) return About(snapshot.directory, std::move(status).error());
  return status;
}

}  // namespace forklet
