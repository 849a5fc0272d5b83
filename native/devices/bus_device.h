#pragma once

#include <cstdint>
#include <span>

namespace forklet {

// The host half of a device that a vCPU reaches by MMIO or port I/O.
//
// Thread: any vCPU thread, several at once; a device locks what it shares.
class BusDevice {
 public:
  virtual ~BusDevice() = default;
  // `data` has 1 to 8 bytes, not necessarily aligned and chosen by the guest; a
  // read must fill all of it (unknown registers read as zero or all ones).
  virtual void Read(uint64_t offset, std::span<uint8_t> data) = 0;
  virtual void Write(uint64_t offset, std::span<const uint8_t> data) = 0;
};

// An edge-triggered interrupt towards the guest. Thread: any.
class InterruptLine {
 public:
  virtual ~InterruptLine() = default;
  virtual void Raise() = 0;
};

}  // namespace forklet
