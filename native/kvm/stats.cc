#include "kvm/stats.h"

#include <cerrno>
#include <cstring>
#include <vector>

namespace forklet {

namespace {

// The wire format of the descriptor, without the header's flexible array.
struct StatsHeader {
  uint32_t flags;
  uint32_t name_size;
  uint32_t descriptors;
  uint32_t id_offset;
  uint32_t descriptor_offset;
  uint32_t data_offset;
};
static_assert(sizeof(StatsHeader) == 24);

struct StatsDescriptor {
  uint32_t flags;
  int16_t exponent;
  uint16_t size;    // Number of 64-bit values
  uint32_t offset;  // From the header's data_offset
  uint32_t bucket_size;
};
static_assert(sizeof(StatsDescriptor) == 16);

Status ReadAt(const UniqueFd& fd, uint64_t offset, void* out, size_t size) {
  const ssize_t count = ::pread(fd.get(), out, size, static_cast<off_t>(offset));
  if (count == static_cast<ssize_t>(size)) return Ok();
  return Error{ErrorCode::kSystem, count < 0 ? errno : EIO, "pread", "KVM statistics"};
}

}  // namespace

Status AddStats(const UniqueFd& stats, std::map<std::string, uint64_t>& totals) {
  // More than any kernel has; the numbers come from the kernel, yet size buffers.
  constexpr uint32_t kMaxDescriptors = 4096;
  constexpr uint32_t kMaxNameBytes = 256;
  StatsHeader header;
  TRY(ReadAt(stats, 0, &header, sizeof header));
  if (header.descriptors > kMaxDescriptors || header.name_size > kMaxNameBytes) {
    return Error{ErrorCode::kSystem, EPROTO, "pread", "KVM statistics header"};
  }
  const size_t stride = sizeof(StatsDescriptor) + header.name_size;
  std::vector<char> block(stride * header.descriptors);
  TRY(ReadAt(stats, header.descriptor_offset, block.data(), block.size()));
  for (uint32_t i = 0; i < header.descriptors; ++i) {
    StatsDescriptor descriptor;
    std::memcpy(&descriptor, block.data() + i * stride, sizeof descriptor);
    if (descriptor.size != 1) continue;
    const char* name = block.data() + i * stride + sizeof descriptor;
    uint64_t value = 0;
    TRY(ReadAt(stats, uint64_t{header.data_offset} + descriptor.offset, &value, sizeof value));
    totals[std::string(name, ::strnlen(name, header.name_size))] += value;
  }
  return Ok();
}

}  // namespace forklet
