#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/event_fd.h"
#include "base/result.h"
#include "devices/bus_device.h"
#include "devices/virtio/device.h"
#include "devices/virtio/queue.h"
#include "memory/guest_memory.h"

namespace forklet {

// The virtio-mmio transport, version 2 (virtio 1.2 §4.2): one page of registers
// in front of one VirtioDevice.
//
// Notifications: the VM layer registers notifier(i) as an ioeventfd at
// kQueueNotify with datamatch i, waits for it on the device thread, and answers
// with HandleNotify(i). A notification that arrives as a VM exit instead signals
// the same eventfd.
//
// Owner: the VM. Thread: registers from any vCPU thread, HandleNotify from the
// device thread. One lock covers both and is held for one register access or
// one bounded turn; the registers of the interrupt path need no lock.
class VirtioMmio final : public BusDevice {
 public:
  static constexpr uint64_t kBytes = 0x1000;      // Size of the register window
  static constexpr uint64_t kQueueNotify = 0x50;  // Offset for the ioeventfds, 4 bytes

  // Everything that a snapshot must keep of the transport and its queues.
  struct State {
    uint32_t status = 0;
    uint64_t driver_features = 0;
    uint32_t device_features_select = 0;
    uint32_t driver_features_select = 0;
    uint32_t queue_select = 0;
    uint32_t interrupt_status = 0;
    bool reset_pending = false;  // The device has not heard of the last reset yet
    std::vector<QueueState> queues;

    bool operator==(const State&) const = default;
  };

  // All three outlive this object.
  static Result<std::unique_ptr<VirtioMmio>> Create(VirtioDevice& device, const GuestMemory& memory,
                                                    InterruptLine& line);

  void Read(uint64_t offset, std::span<uint8_t> data) override;
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

  uint16_t queue_count() const { return static_cast<uint16_t>(queues_.size()); }
  const EventFd& notifier(uint16_t queue) const { return notifiers_[queue]; }

  // One bounded turn for one queue, after its notifier was signalled and the
  // caller has drained it. Signals it again when work remains, so that waiting
  // for the notifier is all the scheduling there is.
  // Thread: the device thread.
  Turn HandleNotify(uint16_t queue);

  // While neither a vCPU nor the device thread is at work on the device.
  State Save() const;
  // Takes over a saved state, which may come from a file, and forgets the one
  // before. kBadSnapshot, and nothing changed, when no guest could have brought
  // the registers into it; rings that are not in RAM stop the device, as they do
  // when a driver sets them up. Signals and raises nothing: see Kick. Before the
  // device thread knows the device, or while it leaves it alone.
  Status Restore(const State& state);
  // Has a restored device looked at: signals every notifier, since work may have
  // been waiting when the state was saved, and raises the interrupt anew that
  // the driver has not acknowledged. One too many does no harm.
  void Kick();

  // Leaves the device still until Unquiesce: a turn does nothing, and is made up
  // for afterwards.
  // Thread: the device thread for the first, any for the second.
  void Quiesce();
  void Unquiesce();

  // Times that this device was stopped because its driver broke the rules.
  uint64_t needs_reset_count() const { return needs_reset_count_.load(std::memory_order_relaxed); }
  // Accesses to unknown registers, of a bad width, or out of turn.
  uint64_t ignored_accesses() const { return ignored_accesses_.load(std::memory_order_relaxed); }

 private:
  struct Registers {
    uint32_t status = 0;
    uint64_t driver_features = 0;
    uint32_t device_features_select = 0;
    uint32_t driver_features_select = 0;
    uint32_t queue_select = 0;
    bool reset_pending = false;
  };

  VirtioMmio(VirtioDevice& device, const GuestMemory& memory, InterruptLine& line);

  uint32_t ReadRegister(uint64_t offset);
  void WriteRegister(uint64_t offset, uint32_t value);
  void WriteStatus(uint32_t value);
  void WriteQueueRegister(uint64_t offset, uint32_t value);
  uint64_t offered_features() const;
  bool features_acceptable(uint64_t driver_features) const;
  bool Plausible(const State& state) const;
  bool running() const;
  void Activate();
  bool EnableQueues();
  void Reset();
  void MarkNeedsReset();
  void FinishTurn();
  void Interrupt(uint32_t cause);
  void CountIgnored() { ignored_accesses_.fetch_add(1, std::memory_order_relaxed); }

  VirtioDevice& device_;
  const GuestMemory& memory_;
  InterruptLine& line_;
  std::vector<EventFd> notifiers_;  // One a queue
  // Thread: lock-free, since a vCPU reads and acknowledges it in its interrupt
  // handler, where it must not wait for the device thread's turn.
  std::atomic<uint32_t> interrupt_status_ = 0;
  std::atomic<uint64_t> needs_reset_count_ = 0;
  std::atomic<uint64_t> ignored_accesses_ = 0;

  mutable std::mutex mutex_;
  // Thread: all below under mutex_.
  std::vector<Virtqueue> queues_;
  Registers state_;
  bool quiesced_ = false;
  bool turn_missed_ = false;  // While quiesced
};

}  // namespace forklet
