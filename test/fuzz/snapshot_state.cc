// The file `state` of a saved snapshot, written by somebody who gets the
// checksums right, or by accident.
#include <cstring>
#include <vector>

#include "base/xxhash64.h"
#include "fuzz_input.h"
#include "snapshot/state_file.h"

namespace forklet::fuzzing {
namespace {

// Places in the file, as docs/snapshot-format.md has them.
constexpr size_t kChecksumAt = 24;
constexpr size_t kTableAt = 32;
constexpr size_t kEntryBytes = 32;
constexpr size_t kSections = 6;

// What a run does: bits of the input's first byte.
constexpr uint8_t kRawFile = 1;      // Instead of a good file with some bytes changed
constexpr uint8_t kResealParts = 2;  // Makes the sections' checksums right
constexpr uint8_t kResealHeader = 4;

std::vector<uint8_t> PatchedFile(FuzzInput& input) {
  SnapshotState state;
  state.config = {.memory_bytes = 3u << 19, .vcpus = 1, .regions = {{0, 3u << 19, 0}}};
  state.cpu.assign(5, 1);
  state.devices.assign(8, 2);
  state.session.assign(1, 3);
  state.chunk_checksums.assign(2, 4);
  std::vector<uint8_t> file = EncodeSnapshotState(state).value();
  for (uint8_t patches = input.Take<uint8_t>() % 16; patches > 0; --patches) {
    const size_t at = input.Take<uint16_t>() % file.size();
    file[at] = input.Take<uint8_t>();
  }
  const auto behind = input.TakeBytes(input.Take<uint8_t>());
  file.insert(file.end(), behind.begin(), behind.end());
  return file;
}

uint64_t Load(const std::vector<uint8_t>& file, size_t at) {
  uint64_t value = 0;
  std::memcpy(&value, file.data() + at, sizeof value);
  return value;
}

void Reseal(std::vector<uint8_t>& file, uint8_t what) {
  if (file.size() < kTableAt + kSections * kEntryBytes) return;
  for (size_t i = 0; (what & kResealParts) && i < kSections; ++i) {
    const size_t entry = kTableAt + i * kEntryBytes;
    const uint64_t offset = Load(file, entry + 8);
    const uint64_t bytes = Load(file, entry + 16);
    if (offset > file.size() || bytes > file.size() - offset) continue;
    const uint64_t digest = Xxhash64::Of(std::span(file).subspan(offset, bytes));
    std::memcpy(file.data() + entry + 24, &digest, sizeof digest);
  }
  if (!(what & kResealHeader)) return;
  Xxhash64 hash;
  hash.Update(std::span(file).first(kChecksumAt));
  hash.Update(std::span(file).subspan(kTableAt, kSections * kEntryBytes));
  const uint64_t digest = hash.Digest();
  std::memcpy(file.data() + kChecksumAt, &digest, sizeof digest);
}

}  // namespace
}  // namespace forklet::fuzzing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace forklet;
  fuzzing::FuzzInput input(data, size);
  const auto what = input.Take<uint8_t>();
  std::vector<uint8_t> file;
  if (what & fuzzing::kRawFile) {
    const auto raw = input.TakeBytes(size);
    file.assign(raw.begin(), raw.end());
  } else {
    file = fuzzing::PatchedFile(input);
  }
  fuzzing::Reseal(file, what);

  const auto parsed = ParseSnapshotState(file);
  if (!parsed.ok()) {
    CHECK(parsed.error().code == ErrorCode::kBadSnapshot);
    CHECK(!parsed.error().detail.empty());
    return 0;
  }
  const SnapshotState& state = parsed.value();
  uint64_t bytes = 0;
  for (const SnapshotRegion& region : state.config.regions) {
    CHECK(region.file_offset == bytes);
    bytes += region.bytes;
  }
  CHECK(bytes == state.config.memory_bytes);
  CHECK(state.chunk_checksums.size() == SnapshotChunks(bytes));
  // There is one way to write a state: what was taken is exactly that.
  CHECK(EncodeSnapshotState(state).value() == file);
  return 0;
}
