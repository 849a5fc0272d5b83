#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "devices/bus_device.h"

namespace forklet {

// What a guest asks of its power.
enum class PowerEvent : uint8_t {
  kPowerOff,
  kRestart,
};

// The registers by which a guest with ACPI powers off and restarts: the ports
// that the FADT names, one byte each (arch/x86_64/acpi.h has offsets and values).
// Everything else reads as zero and ignores writes: what a kernel writes to clear
// the wake status, and sleep states that the tables do not offer.
//
// Owner: the VM. Thread: any vCPU thread.
class AcpiPower final : public BusDevice {
 public:
  // `on_event` runs on the vCPU thread that wrote, inside its VM exit.
  explicit AcpiPower(std::function<void(PowerEvent)> on_event) : on_event_(std::move(on_event)) {}

  void Read(uint64_t offset, std::span<uint8_t> data) override;
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

  uint64_t ignored_writes() const { return ignored_writes_.load(std::memory_order_relaxed); }

 private:
  const std::function<void(PowerEvent)> on_event_;
  std::atomic<uint64_t> ignored_writes_ = 0;
};

}  // namespace forklet
