#include "kvm/stats.h"

#include <algorithm>
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

Status VisitStats(const UniqueFd& stats,
                  const std::function<void(std::string_view name, uint64_t value)>& visit) {
  // More than any kernel has; the numbers come from the kernel, yet size buffers.
  constexpr uint32_t kMaxDescriptors = 4096;
  constexpr uint32_t kMaxNameBytes = 256;
  constexpr uint32_t kMaxDataBytes = 1u << 20;
  StatsHeader header;
  TRY(ReadAt(stats, 0, &header, sizeof header));
  if (header.descriptors > kMaxDescriptors || header.name_size > kMaxNameBytes) {
    return Error{ErrorCode::kSystem, EPROTO, "pread", "KVM statistics header"};
  }
  const size_t stride = sizeof(StatsDescriptor) + header.name_size;
  std::vector<char> block(stride * header.descriptors);
  TRY(ReadAt(stats, header.descriptor_offset, block.data(), block.size()));
  const auto descriptor_at = [&](uint32_t i) {
    StatsDescriptor descriptor;
    std::memcpy(&descriptor, block.data() + i * stride, sizeof descriptor);
    return descriptor;
  };
  uint64_t data_bytes = 0;
  for (uint32_t i = 0; i < header.descriptors; ++i) {
    const StatsDescriptor descriptor = descriptor_at(i);
    data_bytes = std::max(data_bytes, descriptor.offset + uint64_t{descriptor.size} * 8);
  }
  if (data_bytes > kMaxDataBytes) {
    return Error{ErrorCode::kSystem, EPROTO, "pread", "KVM statistics descriptors"};
  }
  std::vector<uint64_t> values(data_bytes / 8);
  TRY(ReadAt(stats, header.data_offset, values.data(), values.size() * 8));
  for (uint32_t i = 0; i < header.descriptors; ++i) {
    const StatsDescriptor descriptor = descriptor_at(i);
    if (descriptor.size != 1 || descriptor.offset % 8 != 0) continue;
    const char* name = block.data() + i * stride + sizeof descriptor;
    visit({name, ::strnlen(name, header.name_size)}, values[descriptor.offset / 8]);
  }
  return Ok();
}

Status AddStats(const UniqueFd& stats, std::map<std::string, uint64_t>& totals) {
  return VisitStats(
      stats, [&](std::string_view name, uint64_t value) { totals[std::string(name)] += value; });
}

}  // namespace forklet
