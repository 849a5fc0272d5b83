#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "devices/bus_device.h"

namespace forklet {

// Addresses [start, start + size) that belong to one device.
struct BusRange {
  uint64_t start;
  uint64_t size;
  BusDevice* device;  // Lifetime: outlives the Bus
};

// Routes the accesses of one address space to its devices: one Bus for MMIO,
// one for port I/O.
//
// Owner: the VM. Thread: any vCPU thread; the routes never change.
class Bus {
 public:
  // Fails when a range is empty, wraps around or overlaps another.
  static Result<std::unique_ptr<Bus>> Create(std::vector<BusRange> ranges);

  // An access that no device claims as a whole reads as all ones, like an empty
  // hardware bus; such a write is dropped. Both are counted.
  void Read(uint64_t address, std::span<uint8_t> data);
  void Write(uint64_t address, std::span<const uint8_t> data);

  uint64_t unclaimed_accesses() const {
    return unclaimed_accesses_.load(std::memory_order_relaxed);
  }

 private:
  explicit Bus(std::vector<BusRange> ranges) : ranges_(std::move(ranges)) {}
  const BusRange* Find(uint64_t address, uint64_t size) const;

  const std::vector<BusRange> ranges_;  // Sorted by start
  std::atomic<uint64_t> unclaimed_accesses_ = 0;
};

}  // namespace forklet
