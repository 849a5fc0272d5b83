#include "devices/bus.h"

#include <algorithm>
#include <limits>
#include <string>

namespace forklet {

Result<std::unique_ptr<Bus>> Bus::Create(std::vector<BusRange> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const BusRange& a, const BusRange& b) { return a.start < b.start; });
  for (size_t i = 0; i < ranges.size(); ++i) {
    const BusRange& range = ranges[i];
    const bool wraps = range.size > std::numeric_limits<uint64_t>::max() - range.start;
    const bool overlaps = i > 0 && range.start - ranges[i - 1].start < ranges[i - 1].size;
    if (range.size == 0 || wraps || overlaps) {
      return Error{ErrorCode::kInternal, 0, "",
                   "bus range at " + std::to_string(range.start) +
                       (overlaps ? " overlaps the one before it" : " is empty or wraps around")};
    }
  }
  return std::unique_ptr<Bus>(new Bus(std::move(ranges)));
}

const BusRange* Bus::Find(uint64_t address, uint64_t size) const {
  auto next = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                               [](uint64_t a, const BusRange& range) { return a < range.start; });
  if (next == ranges_.begin()) return nullptr;
  const BusRange& range = *std::prev(next);
  const uint64_t offset = address - range.start;
  // Bounds: written so that neither side can overflow.
  if (offset >= range.size || size > range.size - offset) return nullptr;
  return &range;
}

void Bus::Read(uint64_t address, std::span<uint8_t> data) {
  if (const BusRange* range = Find(address, data.size())) {
    range->device->Read(address - range->start, data);
    return;
  }
  std::fill(data.begin(), data.end(), uint8_t{0xff});
  unclaimed_accesses_.fetch_add(1, std::memory_order_relaxed);
}

void Bus::Write(uint64_t address, std::span<const uint8_t> data) {
  if (const BusRange* range = Find(address, data.size())) {
    range->device->Write(address - range->start, data);
    return;
  }
  unclaimed_accesses_.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace forklet
