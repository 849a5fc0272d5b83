#include "snapshot/state_file.h"

#include <functional>
#include <string>

#include "base/state_io.h"
#include "base/xxhash64.h"

#include "doctest.h"

namespace forklet {
namespace {

constexpr uint64_t kMiB = 1u << 20;

// 2.5 MiB in two regions around a hole.
SnapshotState Example() {
  SnapshotState state;
  state.config.memory_bytes = 5 * kMiB / 2;
  state.config.vcpus = 2;
  state.config.regions = {{0, kMiB, 0}, {uint64_t{4} << 30, 3 * kMiB / 2, kMiB}};
  state.cpu = {1, 2, 3};
  state.devices = {4, 5, 6, 7, 8, 9, 10, 11};
  state.session = {'{', '}'};
  state.manifest_bytes = 77;
  state.manifest_checksum = 0x123456789abcdef0;
  state.chunk_checksums = {11, 22, 33};
  return state;
}

std::vector<uint8_t> Encode(const SnapshotState& state) {
  return EncodeSnapshotState(state).value();
}

// What the parser has to say; empty when it takes the bytes.
std::string Complaint(std::span<const uint8_t> file) {
  const auto parsed = ParseSnapshotState(file);
  if (parsed.ok()) return {};
  CHECK_EQ(parsed.error().code, ErrorCode::kBadSnapshot);
  return parsed.error().Message();
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Places in the file, as docs/snapshot-format.md has them.
constexpr size_t kVersionAt = 8;
constexpr size_t kSectionCountAt = 12;
constexpr size_t kChecksumAt = 24;
constexpr size_t kTableAt = 32;
constexpr size_t kEntryBytes = 32;
constexpr size_t kSections = 6;

// The offset and length of a section, from the table.
std::pair<uint64_t, uint64_t> Section(std::span<const uint8_t> file, size_t index) {
  StateReader in(file.subspan(kTableAt + index * kEntryBytes + 8, 16));
  uint64_t offset = 0;
  uint64_t bytes = 0;
  REQUIRE(in.Read(offset));
  REQUIRE(in.Read(bytes));
  return {offset, bytes};
}

// Makes the header's checksum right again, as somebody would who means it.
void Reseal(std::vector<uint8_t>& file) {
  Xxhash64 hash;
  hash.Update(std::span(file).first(kChecksumAt));
  hash.Update(std::span(file).subspan(kTableAt, kSections * kEntryBytes));
  const uint64_t digest = hash.Digest();
  std::memcpy(file.data() + kChecksumAt, &digest, sizeof digest);
}

TEST_CASE("A state file gives back what it was made of") {
  const SnapshotState state = Example();
  const auto parsed = ParseSnapshotState(Encode(state));
  REQUIRE(parsed.ok());
  CHECK(parsed.value() == state);
}

TEST_CASE("A state file begins with magic and version, and has the sections in order") {
  const std::vector<uint8_t> file = Encode(Example());
  CHECK_EQ(std::string(file.begin(), file.begin() + 8), std::string("FORKLET\0", 8));
  CHECK_EQ(file[kVersionAt], kSnapshotVersion);
  CHECK_EQ(file[kSectionCountAt], kSections);
  uint64_t next = kTableAt + kSections * kEntryBytes;
  for (size_t i = 0; i < kSections; ++i) {
    CHECK_EQ(file[kTableAt + i * kEntryBytes], i + 1);
    const auto [offset, bytes] = Section(file, i);
    CHECK_EQ(offset, next);
    next = (offset + bytes + 7) / 8 * 8;
  }
  CHECK_EQ(next, file.size());
}

TEST_CASE("A state file of another version is refused with both numbers") {
  std::vector<uint8_t> file = Encode(Example());
  file[kVersionAt] = 7;
  const std::string complaint = Complaint(file);
  CHECK(Contains(complaint, "format version 7"));
  CHECK(Contains(complaint, "reads version 1"));
}

TEST_CASE("Something else than a state file is refused as such") {
  CHECK(Contains(Complaint({}), "no snapshot of forklet"));
  const std::string text = "#!/bin/sh\necho hello\n";
  CHECK(Contains(Complaint({reinterpret_cast<const uint8_t*>(text.data()), text.size()}),
                 "no snapshot of forklet"));
}

TEST_CASE("A state file is refused when cut short anywhere, or when longer") {
  std::vector<uint8_t> file = Encode(Example());
  for (size_t size = 0; size < file.size(); ++size) {
    REQUIRE_FALSE(Complaint(std::span(file).first(size)).empty());
  }
  CHECK(Contains(Complaint(std::span(file).first(file.size() - 1)), "truncated"));
  file.resize(file.size() + 8);
  CHECK(Contains(Complaint(file), "longer than it was"));
}

TEST_CASE("A state file is refused when any bit of it is not what it was") {
  std::vector<uint8_t> file = Encode(Example());
  for (size_t bit = 0; bit < file.size() * 8; ++bit) {
    file[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
    REQUIRE_FALSE(Complaint(file).empty());
    file[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
  }
  CHECK(Complaint(file).empty());
}

TEST_CASE("A damaged section is named") {
  const char* names[kSections] = {"configuration", "cpu",      "devices",
                                  "session",       "manifest", "memory checksums"};
  for (size_t i = 0; i < kSections; ++i) {
    std::vector<uint8_t> file = Encode(Example());
    file[Section(file, i).first] ^= 1;
    const std::string complaint = Complaint(file);
    CHECK(Contains(complaint, names[i]));
    CHECK(Contains(complaint, "checksum"));
  }
}

TEST_CASE("A section table is refused that is not the one of this version") {
  const auto with_entry = [](size_t section, size_t at, uint8_t value) {
    std::vector<uint8_t> file = Encode(Example());
    file[kTableAt + section * kEntryBytes + at] = value;
    Reseal(file);
    return Complaint(file);
  };
  CHECK(Contains(with_entry(0, 0, 2), "section table"));       // Type
  CHECK(Contains(with_entry(1, 4, 1), "section table"));       // Zero
  CHECK(Contains(with_entry(2, 8, 1), "section table"));       // Offset
  CHECK(Contains(with_entry(1, 16 + 7, 0xff), "impossible"));  // Length
  CHECK(Contains(with_entry(5, 16 + 1, 0xff), "impossible"));  // Beyond the file
  CHECK(Contains(with_entry(1, 24, 0), "checksum of section"));
}

TEST_CASE("Padding between sections has to be zero") {
  std::vector<uint8_t> file = Encode(Example());
  const auto [offset, bytes] = Section(file, 1);
  REQUIRE_EQ(bytes, 3);
  file[offset + 3] = 1;
  CHECK(Contains(Complaint(file), "does not belong there"));
}

TEST_CASE("A configuration is refused that no VM can have") {
  const auto complaint_with = [](const std::function<void(SnapshotConfig&)>& change) {
    SnapshotState state = Example();
    change(state.config);
    return Complaint(Encode(state));
  };
  const auto refused = [&](const std::function<void(SnapshotConfig&)>& change) {
    return Contains(complaint_with(change), "configuration");
  };
  CHECK(complaint_with([](SnapshotConfig&) {}).empty());
  CHECK(refused([](auto& config) { config.vcpus = 0; }));
  CHECK(refused([](auto& config) { config.vcpus = 256; }));
  CHECK(refused([](auto& config) { config.memory_bytes = 0; }));
  CHECK(refused([](auto& config) { config.memory_bytes += 4096; }));
  CHECK(refused([](auto& config) { config.memory_bytes = kMaxSnapshotMemoryBytes * 2; }));
  CHECK(refused([](auto& config) { config.regions.clear(); }));
  CHECK(refused([](auto& config) { config.regions.pop_back(); }));
  CHECK(refused([](auto& config) { config.regions[0].bytes -= 1; }));
  CHECK(refused([](auto& config) { config.regions[1].start += 1; }));
  CHECK(refused([](auto& config) { config.regions[1].start = 4096; }));  // Overlap
  CHECK(refused([](auto& config) { config.regions[1].start = ~uint64_t{4095}; }));
  CHECK(refused([](auto& config) { config.regions[1].file_offset += 4096; }));
  CHECK(refused([](auto& config) { config.regions[1].bytes = ~uint64_t{4095}; }));
  CHECK(refused([](auto& config) { config.regions[0].bytes = 0; }));
  CHECK(refused([](auto& config) { config.regions.resize(17); }));
}

TEST_CASE("Checksums of memory have to be as many as its chunks") {
  SnapshotState state = Example();
  state.chunk_checksums.pop_back();
  CHECK(Contains(Complaint(Encode(state)), "memory's checksums"));
  state.chunk_checksums.resize(4);
  CHECK(Contains(Complaint(Encode(state)), "memory's checksums"));
}

TEST_CASE("A manifest is refused that is larger than any") {
  SnapshotState state = Example();
  state.manifest_bytes = kMaxManifestBytes + 1;
  CHECK(Contains(Complaint(Encode(state)), "manifest"));
}

TEST_CASE("A part that nobody could read again is not written") {
  SnapshotState state = Example();
  state.cpu.resize(kMaxCpuStateBytes + 1);
  const auto encoded = EncodeSnapshotState(state);
  REQUIRE_FALSE(encoded.ok());
  CHECK_EQ(encoded.error().code, ErrorCode::kInternal);
}

}  // namespace
}  // namespace forklet
