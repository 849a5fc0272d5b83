#pragma once

#include <cstdint>
#include <span>

#include "base/event_fd.h"
#include "devices/virtio/queue.h"

namespace forklet {

// What a bounded turn of the device thread left behind.
enum class Turn : uint8_t {
  kIdle,      // Nothing to do until the next notification
  kMoreWork,  // The budget ran out first: call again, after the others
};

// The most that one device does with one queue in one turn, so that no VM
// starves the others on the device thread. A chain is taken whole, so a turn may
// exceed the bytes by one chain.
struct TurnBudget {
  uint32_t chains = 64;
  uint64_t bytes = 256 * 1024;

  bool exhausted() const { return chains == 0 || bytes == 0; }
  void Spend(uint64_t count) {
    if (chains > 0) --chains;
    bytes -= count < bytes ? count : bytes;
  }
};

// A virtio device behind a transport: what VirtioMmio needs to know of it.
//
// Thread: the constant questions (type, features, queue_sizes, ReadConfig) come
// from any vCPU thread; everything else happens on the device thread, with the
// transport's lock held.
class VirtioDevice {
 public:
  virtual ~VirtioDevice() = default;

  // Device ID, virtio 1.2 §5.
  virtual uint32_t type() const = 0;
  // Device-specific feature bits; the transport adds its own.
  virtual uint64_t features() const { return 0; }
  // Maximum size of each queue, a power of two. Constant, valid for ever.
  virtual std::span<const uint16_t> queue_sizes() const = 0;
  // Fills all of `data` from the device's configuration space; zero beyond it.
  virtual void ReadConfig(uint64_t offset, std::span<uint8_t> data) const = 0;

  // One bounded turn of work after a notification of queue `index`. Some queues
  // may be disabled: taking a chain from one yields nothing.
  virtual Turn ProcessQueue(uint16_t index) = 0;
  // The driver has reset the device, and may have set it up again since: drop
  // everything that belongs to the time before. Comes before any ProcessQueue
  // of the new time.
  virtual void HandleReset() = 0;

  // The transport hands over its queues and their notifiers, once, before
  // anything else. Both outlive the device's last call.
  void Bind(std::span<Virtqueue> queues, std::span<const EventFd> notifiers) {
    queues_ = queues;
    notifiers_ = notifiers;
  }

 protected:
  std::span<Virtqueue> queues_;
  std::span<const EventFd> notifiers_;
};

}  // namespace forklet
