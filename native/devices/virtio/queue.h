#pragma once

// Leaves out vring_init, which is no valid C++.
#define VIRTIO_RING_NO_LEGACY
#include <linux/virtio_ring.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "memory/guest_memory.h"

namespace forklet {

// One request of the driver: guest buffers as host ranges, device-readable ones
// first. The ranges are checked; their contents belong to the guest and may
// change at any time, so each byte is to be read once.
class DescriptorChain {
 public:
  uint16_t head() const { return head_; }
  size_t readable_bytes() const { return readable_bytes_; }
  size_t writable_bytes() const { return writable_bytes_; }
  std::span<const std::span<uint8_t>> writable() const { return writable_; }

  // Copies from the device-readable bytes at `offset`; returns how many there
  // were, at most out.size().
  size_t Read(size_t offset, std::span<uint8_t> out) const;
  // Copies to the device-writable bytes at `offset`; returns how many fitted.
  size_t Write(size_t offset, std::span<const uint8_t> data) const;

 private:
  friend class Virtqueue;
  void Clear();

  uint16_t head_ = 0;
  size_t readable_bytes_ = 0;
  size_t writable_bytes_ = 0;
  // Lifetime: ranges of the VM's GuestMemory.
  std::vector<std::span<uint8_t>> readable_;
  std::vector<std::span<uint8_t>> writable_;
};

// Everything that a snapshot must keep of a queue.
struct QueueState {
  uint16_t size = 0;  // Descriptors
  bool ready = false;
  GuestAddress descriptors;
  GuestAddress available;
  GuestAddress used;
  uint16_t next_available = 0;  // Index of the next chain to take
  uint16_t next_used = 0;       // Index of the next used entry to write
  uint16_t signalled_used = 0;  // Value of next_used when an interrupt was last considered

  bool operator==(const QueueState&) const = default;
};

// The device's end of a split virtqueue (virtio 1.2 §2.7), with
// VIRTIO_F_EVENT_IDX where it is negotiated. Indirect descriptors are not
// offered: they would cost the guest an allocation a request, which is dear
// where its kernel is emulated.
//
// A ring that breaks the rules (index ahead of the ring, descriptor out of
// range, loop, buffer outside RAM) makes the queue broken: it yields no chain
// until it is enabled anew.
//
// Owner: the transport. Thread: under the transport's lock.
class Virtqueue {
 public:
  // The set-up, by the transport. Read while the queue is enabled: `state` holds
  // the indices as well.
  QueueState& state() { return state_; }
  const QueueState& state() const { return state_; }

  // Checks the set-up and starts the queue at the indices of the state. False
  // when size, alignment or addresses are not acceptable.
  [[nodiscard]] bool Enable(const GuestMemory& memory, bool event_idx, uint16_t max_size);
  // Stops the queue and forgets its state.
  void Reset();
  bool enabled() const { return memory_ != nullptr; }
  bool broken() const { return broken_; }

  // Takes the next chain; false when there is none (or the queue is disabled or
  // broken). `chain` keeps its capacity from call to call.
  bool Pop(DescriptorChain& chain);
  // Returns a chain, of which the first `written` writable bytes were written.
  void PushUsed(uint16_t head, uint32_t written);

  // Asks the driver for a notification when it adds the next chain. True when it
  // has added one already, which it may not notify: look again.
  [[nodiscard]] bool EnableNotify();
  // Asks the driver not to notify; it may do so all the same.
  void DisableNotify();

  // Whether the driver wants an interrupt for what was returned since this was
  // last asked.
  bool TakeInterrupt();

 private:
  bool LoadAvailableIndex(uint16_t& pending);
  bool AddDescriptor(const vring_desc& descriptor, DescriptorChain& chain) const;
  bool Break();

  QueueState state_;
  bool event_idx_ = false;
  bool broken_ = false;
  const GuestMemory* memory_ = nullptr;  // Lifetime: the VM's; null when disabled
  // Bounds: Enable has checked the whole of each structure for state_.size.
  const vring_desc* descriptors_ = nullptr;
  uint16_t* available_ = nullptr;    // flags, idx, ring[size], used_event
  uint16_t* used_header_ = nullptr;  // flags, idx
  vring_used_elem* used_ring_ = nullptr;
  uint16_t* available_event_ = nullptr;
};

}  // namespace forklet
