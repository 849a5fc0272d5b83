#include "vm/snapshot_files.h"

#include <cerrno>
#include <ctime>
#include <utility>

#include "base/state_io.h"
#include "snapshot/device_state.h"
#include "snapshot/saved_snapshot.h"
#include "vm/vm_state_io.h"

namespace forklet {

namespace {

// How guest memory of that size lies in its file: GuestMemory's own layout.
std::vector<SnapshotRegion> Regions(uint64_t memory_bytes) {
  const uint64_t low = std::min(memory_bytes, layout::kMmioHole.value);
  std::vector<SnapshotRegion> regions = {{0, low, 0}};
  if (memory_bytes > low) {
    regions.push_back({layout::kHighRegion.value, memory_bytes - low, low});
  }
  return regions;
}

std::string UtcNow() {
  const time_t now = ::time(nullptr);
  tm parts = {};
  char text[32] = {};
  if (::gmtime_r(&now, &parts) != nullptr) {
    ::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  }
  return text;
}

// What a person who finds the directory wants to know.
std::vector<uint8_t> Manifest(const VmState& state) {
  const std::string text =
      "{\n  \"format\": \"forklet snapshot\",\n  \"version\": " + std::to_string(kSnapshotVersion) +
      ",\n  \"saved\": \"" + UtcNow() +
      "\",\n  \"memoryBytes\": " + std::to_string(state.memory_bytes) +
      ",\n  \"vcpus\": " + std::to_string(state.cpus.size()) + ",\n  \"at\": \"" +
      (state.place == ParkPlace::kAgent ? "agent" : "program") + "\"\n}\n";
  return {text.begin(), text.end()};
}

Error WithCancellation(Error error) {
  if (error.code == ErrorCode::kSystem && error.sys_errno == ECANCELED) {
    error.code = ErrorCode::kCancelled;
  }
  return error;
}

}  // namespace

Status SaveToDirectory(const Snapshot& snapshot, const std::string& directory, bool overwrite,
                       Bytes session, const std::atomic<bool>& cancelled) {
  const VmState& state = *snapshot.state();
  SnapshotContents contents;
  contents.config.memory_bytes = state.memory_bytes;
  contents.config.vcpus = static_cast<uint32_t>(state.cpus.size());
  contents.config.regions = Regions(state.memory_bytes);
  contents.cpu = WriteVmState(state);
  StateWriter devices;
  WriteState(devices, state.devices);
  contents.devices = std::move(devices).Take();
  contents.session = std::move(session);
  contents.manifest = Manifest(state);

  MemoryImageReader reader(state.memory);
  const MemorySource source = [&]() -> Result<std::optional<MemoryPiece>> {
    MemoryPiece piece;
    ASSIGN_OR_RETURN(const bool more, reader.Next(piece.offset, piece.data));
    return more ? std::optional(piece) : std::nullopt;
  };
  auto saved = SaveSnapshot(directory, overwrite, contents, source, &cancelled);
  if (!saved.ok()) return WithCancellation(std::move(saved).error());
  return Ok();
}

Result<SnapshotFromDirectory> LoadFromDirectory(const std::string& kvm_path,
                                                const std::string& directory, bool verify,
                                                const std::atomic<bool>& cancelled) {
  ASSIGN_OR_RETURN(const Kvm kvm, Kvm::Open(kvm_path));
  ASSIGN_OR_RETURN(const auto host, CachedHostProfile(kvm_path, kvm));
  ASSIGN_OR_RETURN(LoadedSnapshot loaded, LoadSnapshot(directory));
  if (verify) {
    auto verified = VerifySnapshot(loaded, &cancelled);
    if (!verified.ok()) return WithCancellation(std::move(verified).error());
  }
  const auto bad = [&](const char* detail) {
    return Error{ErrorCode::kBadSnapshot, 0, {}, directory + ": " + detail};
  };
  auto read = ReadVmState(loaded.contents.cpu, *host);
  if (!read.ok()) return bad(read.error().detail.c_str());
  VmState state = std::move(read).value();
  StateReader devices(loaded.contents.devices);
  if (!ReadState(devices, state.devices) || !devices.Finish()) {
    return bad("the devices' state is malformed");
  }
  const SnapshotConfig& config = loaded.contents.config;
  if (config.memory_bytes != state.memory_bytes || config.vcpus != state.cpus.size() ||
      config.regions != Regions(state.memory_bytes)) {
    return bad("its parts belong to VMs of different sizes");
  }
  state.memory = MemoryImage::FromFile(std::make_shared<const UniqueFd>(std::move(loaded.memory)),
                                       state.memory_bytes, MemoryImage::Backing::kDisk);
  ASSIGN_OR_RETURN(auto snapshot,
                   Snapshot::Create(kvm_path, std::make_shared<const VmState>(std::move(state))));
  ForkTimes times;
  auto trial = snapshot->Fork(PoolUse::kNever, 0, times);
  if (!trial.ok()) {
    Error error = std::move(trial).error();
    // What KVM refuses of a state that this host's KVM has not made.
    if (error.code == ErrorCode::kKvm) error.code = ErrorCode::kBadSnapshot;
    error.detail = directory + ": " + error.detail;
    return error;
  }
  return SnapshotFromDirectory{std::move(snapshot), std::move(loaded.contents.session)};
}

}  // namespace forklet
