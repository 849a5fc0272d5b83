#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "devices/bus_device.h"

namespace forklet {

// What the guest's kernel reports about its own end.
enum class DoorbellEvent : uint32_t {
  kPowerOff = 1,
  kPanic = 2,
  kRestart = 3,
  kHalt = 4,
};

// The doorbell: one MMIO page by which our guest kernel tells the host what no
// standard device would. Registers, little endian:
//
//   0x00  write u32  EVENT  a DoorbellEvent
//
// Everything else reads as zero and ignores writes. Guest user mode can reach
// this page, so an event is a claim, not a fact.
//
// Owner: the VM. Thread: any vCPU thread.
class Doorbell final : public BusDevice {
 public:
  // `on_event` runs on the vCPU thread that wrote, inside its VM exit.
  explicit Doorbell(std::function<void(DoorbellEvent)> on_event) : on_event_(std::move(on_event)) {}

  void Read(uint64_t offset, std::span<uint8_t> data) override;
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

  uint64_t ignored_accesses() const { return ignored_accesses_.load(std::memory_order_relaxed); }

 private:
  const std::function<void(DoorbellEvent)> on_event_;
  std::atomic<uint64_t> ignored_accesses_ = 0;
};

}  // namespace forklet
