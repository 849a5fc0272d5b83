#include "snapshot/state_file.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/state_io.h"
#include "base/xxhash64.h"

namespace forklet {

namespace {

constexpr std::array<uint8_t, 8> kMagic = {'F', 'O', 'R', 'K', 'L', 'E', 'T', '\0'};
constexpr uint64_t kPageBytes = 4096;
constexpr uint32_t kMaxVcpus = 255;
constexpr size_t kMaxRegions = 16;

// In this order, each exactly once; types count from 1.
constexpr size_t kConfig = 0;
constexpr size_t kCpu = 1;
constexpr size_t kDevices = 2;
constexpr size_t kSession = 3;
constexpr size_t kManifest = 4;
constexpr size_t kChunks = 5;
constexpr size_t kSections = 6;

struct SectionKind {
  const char* name;
  size_t max_bytes;
};
constexpr SectionKind kKinds[kSections] = {
    {"configuration", 4096},
    {"cpu", kMaxCpuStateBytes},
    {"devices", kMaxDeviceStateBytes},
    {"session", kMaxSessionBytes},
    {"manifest", 16},
    {"memory checksums", 16 + kMaxSnapshotMemoryBytes / kSnapshotChunkBytes * 8},
};

constexpr size_t kHeaderBytes = 8 + 4 + 4 + 8 + 8;  // The last 8 are a checksum
constexpr size_t kHashedHeaderBytes = kHeaderBytes - 8;
constexpr size_t kEntryBytes = 4 + 4 + 8 + 8 + 8;
constexpr size_t kContentsOffset = kHeaderBytes + kSections * kEntryBytes;
constexpr size_t kAlign = 8;
static_assert(kContentsOffset % kAlign == 0);

constexpr size_t AlignUp(size_t value) { return (value + kAlign - 1) / kAlign * kAlign; }

Error Bad(std::string detail) {
  return Error{ErrorCode::kBadSnapshot, 0, "", "state: " + std::move(detail)};
}

// Of the header up to the checksum's place, and of the section table.
uint64_t HeaderChecksum(std::span<const uint8_t> file) {
  Xxhash64 hash;
  hash.Update(file.first(kHashedHeaderBytes));
  hash.Update(file.subspan(kHeaderBytes, kSections * kEntryBytes));
  return hash.Digest();
}

std::vector<uint8_t> EncodeConfig(const SnapshotConfig& config) {
  StateWriter out;
  out.Write(config.memory_bytes);
  out.Write(config.vcpus);
  out.WriteCount(config.regions.size());
  for (const SnapshotRegion& region : config.regions) {
    out.Write(region.start);
    out.Write(region.bytes);
    out.Write(region.file_offset);
  }
  return std::move(out).Take();
}

// Whether the regions are what a VM can have: page by page, apart from each
// other, and the whole file once, from its start to its end.
bool CoverFile(const SnapshotConfig& config) {
  uint64_t next_offset = 0;
  uint64_t next_start = 0;
  for (const SnapshotRegion& region : config.regions) {
    if (region.bytes == 0 || region.bytes % kPageBytes != 0 || region.start % kPageBytes != 0 ||
        region.file_offset != next_offset || region.bytes > config.memory_bytes - next_offset ||
        region.start < next_start || region.start > UINT64_MAX - region.bytes) {
      return false;
    }
    next_offset += region.bytes;
    next_start = region.start + region.bytes;
  }
  return next_offset == config.memory_bytes;
}

bool ParseConfig(std::span<const uint8_t> bytes, SnapshotConfig& config) {
  StateReader in(bytes);
  size_t count = 0;
  if (!in.Read(config.memory_bytes) || !in.Read(config.vcpus) ||
      !in.ReadCount(count, sizeof(SnapshotRegion), kMaxRegions)) {
    return false;
  }
  config.regions.resize(count);
  for (SnapshotRegion& region : config.regions) {
    if (!in.Read(region.start) || !in.Read(region.bytes) || !in.Read(region.file_offset)) {
      return false;
    }
  }
  return in.Finish() && config.memory_bytes > 0 && config.memory_bytes % kPageBytes == 0 &&
         config.memory_bytes <= kMaxSnapshotMemoryBytes && config.vcpus > 0 &&
         config.vcpus <= kMaxVcpus && CoverFile(config);
}

bool ParseManifest(std::span<const uint8_t> bytes, SnapshotState& state) {
  StateReader in(bytes);
  return in.Read(state.manifest_bytes) && in.Read(state.manifest_checksum) && in.Finish() &&
         state.manifest_bytes <= kMaxManifestBytes;
}

bool ParseChunks(std::span<const uint8_t> bytes, uint64_t memory_bytes,
                 std::vector<uint64_t>& checksums) {
  StateReader in(bytes);
  uint64_t chunk_bytes = 0;
  size_t count = 0;
  const uint64_t expected = SnapshotChunks(memory_bytes);
  if (!in.Read(chunk_bytes) || chunk_bytes != kSnapshotChunkBytes ||
      !in.ReadCount(count, sizeof(uint64_t), expected) || count != expected) {
    return false;
  }
  checksums.resize(count);
  for (uint64_t& checksum : checksums) {
    if (!in.Read(checksum)) return false;
  }
  return in.Finish();
}

// The contents of the sections, in their order, after everything about the
// container was checked.
Result<std::array<std::span<const uint8_t>, kSections>> FindSections(
    std::span<const uint8_t> file) {
  StateReader table(file.subspan(kHeaderBytes, kSections * kEntryBytes));
  std::array<std::span<const uint8_t>, kSections> sections;
  size_t next = kContentsOffset;
  for (size_t i = 0; i < kSections; ++i) {
    uint32_t type = 0;
    uint32_t zero = 0;
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint64_t checksum = 0;
    if (!table.Read(type) || !table.Read(zero) || !table.Read(offset) || !table.Read(bytes) ||
        !table.Read(checksum) || type != i + 1 || zero != 0 || offset != next) {
      return Bad("the section table is not one of this version");
    }
    const std::string name = "section '" + std::string(kKinds[i].name) + "'";
    // Bounds: `next` never exceeds the file, see below.
    if (bytes > kKinds[i].max_bytes || AlignUp(bytes) > file.size() - next) {
      return Bad(name + " has an impossible size of " + std::to_string(bytes) + " bytes");
    }
    sections[i] = file.subspan(next, bytes);
    if (Xxhash64::Of(sections[i]) != checksum) {
      return Bad("wrong checksum of " + name + ": the file was damaged or changed");
    }
    const std::span<const uint8_t> padding = file.subspan(next + bytes, AlignUp(bytes) - bytes);
    if (std::any_of(padding.begin(), padding.end(), [](uint8_t byte) { return byte != 0; })) {
      return Bad(name + " is followed by something that does not belong there");
    }
    next += AlignUp(bytes);
  }
  if (next != file.size()) return Bad("there are bytes behind the last section");
  return sections;
}

Status CheckHeader(std::span<const uint8_t> file) {
  StateReader header(file);
  uint8_t magic = 0;
  for (uint8_t expected : kMagic) {
    if (!header.Read(magic) || magic != expected) return Bad("this is no snapshot of forklet");
  }
  uint32_t version = 0;
  uint32_t sections = 0;
  uint64_t file_bytes = 0;
  uint64_t checksum = 0;
  if (!header.Read(version)) return Bad("the file is truncated");
  if (version != kSnapshotVersion) {
    return Bad("the snapshot has format version " + std::to_string(version) +
               ", and this release of forklet reads version " + std::to_string(kSnapshotVersion));
  }
  if (!header.Read(sections) || !header.Read(file_bytes) || !header.Read(checksum) ||
      file.size() < kContentsOffset) {
    return Bad("the file is truncated");
  }
  if (HeaderChecksum(file) != checksum || sections != kSections) {
    return Bad("wrong checksum of the header: the file was damaged or changed");
  }
  if (file_bytes != file.size()) {
    return Bad("the file has " + std::to_string(file.size()) + " bytes instead of " +
               std::to_string(file_bytes) + ": it is truncated, or longer than it was");
  }
  return Ok();
}

std::vector<uint8_t> Copy(std::span<const uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

Result<std::vector<uint8_t>> EncodeSnapshotState(const SnapshotState& state) {
  StateWriter manifest;
  manifest.Write(state.manifest_bytes);
  manifest.Write(state.manifest_checksum);
  StateWriter chunks;
  chunks.Write(kSnapshotChunkBytes);
  chunks.WriteCount(state.chunk_checksums.size());
  for (uint64_t checksum : state.chunk_checksums) chunks.Write(checksum);
  const std::vector<uint8_t> config = EncodeConfig(state.config);

  std::span<const uint8_t> sections[kSections];
  sections[kConfig] = config;
  sections[kCpu] = state.cpu;
  sections[kDevices] = state.devices;
  sections[kSession] = state.session;
  sections[kManifest] = manifest.bytes();
  sections[kChunks] = chunks.bytes();

  StateWriter table;
  size_t end = kContentsOffset;
  for (size_t i = 0; i < kSections; ++i) {
    if (sections[i].size() > kKinds[i].max_bytes) {
      return Error{ErrorCode::kInternal, 0, "",
                   std::to_string(sections[i].size()) + " bytes of " + kKinds[i].name +
                       " are too many for a saved snapshot"};
    }
    table.Write(static_cast<uint32_t>(i + 1));
    table.Write(uint32_t{0});
    table.Write(uint64_t{end});
    table.Write(uint64_t{sections[i].size()});
    table.Write(Xxhash64::Of(sections[i]));
    end += AlignUp(sections[i].size());
  }

  StateWriter header;
  for (uint8_t byte : kMagic) header.Write(byte);
  header.Write(kSnapshotVersion);
  header.Write(static_cast<uint32_t>(kSections));
  header.Write(uint64_t{end});
  Xxhash64 hash;
  hash.Update(header.bytes());
  hash.Update(table.bytes());
  header.Write(hash.Digest());

  std::vector<uint8_t> file;
  file.reserve(end);
  const auto append = [&file](std::span<const uint8_t> bytes) {
    file.insert(file.end(), bytes.begin(), bytes.end());
    file.resize(AlignUp(file.size()));
  };
  append(header.bytes());
  append(table.bytes());
  for (std::span<const uint8_t> section : sections) append(section);
  CHECK(file.size() == end);
  return file;
}

Result<SnapshotState> ParseSnapshotState(std::span<const uint8_t> file) {
  TRY(CheckHeader(file));
  ASSIGN_OR_RETURN(const auto sections, FindSections(file));
  SnapshotState state;
  if (!ParseConfig(sections[kConfig], state.config)) {
    return Bad("the configuration is not one that a VM can have");
  }
  if (!ParseManifest(sections[kManifest], state)) return Bad("the manifest's size is impossible");
  if (!ParseChunks(sections[kChunks], state.config.memory_bytes, state.chunk_checksums)) {
    return Bad("the memory's checksums do not fit its size");
  }
  state.cpu = Copy(sections[kCpu]);
  state.devices = Copy(sections[kDevices]);
  state.session = Copy(sections[kSession]);
  return state;
}

}  // namespace forklet
