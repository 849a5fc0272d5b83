#pragma once

#include <atomic>
#include <cstdint>
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

// Who stands still at the doorbell.
enum class ParkPlace : uint8_t {
  kAgent,    // The guest agent, because the host asked it to
  kProgram,  // A program of the guest's, at the place of its choice
};

// What the guest does at the doorbell.
//
// Thread: the vCPU's that did it, inside its VM exit. Guest user mode can reach
// the page, so all of this is a claim, not a fact.
class DoorbellHost {
 public:
  virtual ~DoorbellHost() = default;
  virtual void OnDoorbellEvent(DoorbellEvent event) = 0;
  // A vCPU reads a park register. It has its answer when it is entered next.
  virtual void OnPark(ParkPlace place) = 0;
  // The kernel's random pool was reseeded for the generation with these low bits.
  virtual void OnReseeded(uint32_t generation) = 0;
  // The program that used the exchange is gone.
  virtual void OnProgramGone() = 0;
};

// The doorbell: one MMIO page by which our guest tells the host what no standard
// device would. Registers, 32 bits, little endian:
//
//   0x00  write  EVENT         a DoorbellEvent
//   0x08  read   PARK_AGENT    see ParkPlace; always 1
//   0x10  read   PARK_PROGRAM  likewise
//   0x18  write  RESEEDED      low bits of the mailbox's generation
//   0x1c  write  PROGRAM_GONE  1
//
// Everything else reads as zero and ignores writes.
//
// Owner: the VM. Thread: any vCPU thread. It has no state to save.
class Doorbell final : public BusDevice {
 public:
  // `host` outlives this object.
  explicit Doorbell(DoorbellHost& host) : host_(host) {}

  void Read(uint64_t offset, std::span<uint8_t> data) override;
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

  uint64_t ignored_accesses() const { return ignored_accesses_.load(std::memory_order_relaxed); }

 private:
  void Ignore() { ignored_accesses_.fetch_add(1, std::memory_order_relaxed); }

  DoorbellHost& host_;
  std::atomic<uint64_t> ignored_accesses_ = 0;
};

}  // namespace forklet
