#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>

#include "base/result.h"
#include "devices/bus_device.h"

namespace forklet {

// A 16550A UART at eight ports, complete enough that Linux's 8250 driver
// recognises it and drives it by interrupts. It sends at any speed: a byte is
// gone as soon as it is written.
//
// The interrupt line is edge-triggered and rises with the UART's own level,
// that is when a condition becomes pending while none was. A driver must
// therefore read IIR until it says "none", as all drivers of edge-triggered
// UARTs do.
//
// Owner: the VM. Thread: any; one lock, held for one register access.
class Serial final : public BusDevice {
 public:
  static constexpr uint64_t kPorts = 8;
  // Host input that the guest has not read yet is bounded by this, in bytes.
  static constexpr size_t kMaxInputBytes = 4096;

  // Everything that a snapshot must keep.
  struct State {
    uint8_t ier = 0;
    uint8_t fcr = 0;
    uint8_t lcr = 0x03;  // 8N1
    uint8_t mcr = 0;
    uint8_t scr = 0;
    uint8_t dll = 0x01;  // Divisor 1: 115200 baud
    uint8_t dlm = 0;
    bool thre_pending = false;  // THR ran empty, and IIR did not report it yet
    bool line = false;          // The interrupt level after the last access
    std::deque<uint8_t> input;

    bool operator==(const State&) const = default;
  };

  // `sink` takes each byte that the guest sends, on the vCPU thread and under
  // this UART's lock: it must be quick and must not call back. The line
  // outlives this object.
  Serial(InterruptLine& line, std::function<void(uint8_t)> sink)
      : interrupt_(line), sink_(std::move(sink)) {}

  void Read(uint64_t offset, std::span<uint8_t> data) override;
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

  State Save() const;
  // Takes over a saved state, which may come from a file: kBadSnapshot, and
  // nothing changed, when no guest could have brought a UART into it. Raises no
  // interrupt: see Kick.
  Status Restore(const State& state);
  // Raises the interrupt that a restored state has pending: its edge may have
  // been under way when the state was saved, and one too many does no harm.
  void Kick();

  // Offers bytes to the guest; returns how many were taken (see kMaxInputBytes).
  size_t Input(std::span<const uint8_t> data);

 private:
  uint8_t ReadRegister(uint64_t offset);
  void WriteRegister(uint64_t offset, uint8_t value);
  uint8_t ReadInput();
  void Transmit(uint8_t value);
  // The source that IIR reports, by priority; UART_IIR_NO_INT when none.
  uint8_t PendingInterrupt() const;
  uint8_t ModemStatus() const;
  void UpdateLine();

  InterruptLine& interrupt_;
  const std::function<void(uint8_t)> sink_;
  mutable std::mutex mutex_;
  State state_;  // Thread: under mutex_
};

}  // namespace forklet
