// The driver's half of virtio, for tests: lays out rings in a GuestMemory and
// drives a device the way a guest does, rightly or wrongly.
#pragma once

#define VIRTIO_RING_NO_LEGACY
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "devices/bus_device.h"
#include "devices/virtio/queue.h"
#include "memory/guest_memory.h"

namespace forklet::testing {

class CountingLine final : public InterruptLine {
 public:
  void Raise() override { count_.fetch_add(1); }
  int Take() { return count_.exchange(0); }

 private:
  std::atomic<int> count_ = 0;
};

inline GuestMemory MakeMemory(uint64_t bytes = 4 << 20) {
  auto memory = GuestMemory::Create(bytes);
  CHECK(memory.ok());
  return std::move(memory).value();
}

struct Buffer {
  uint64_t address;
  uint32_t length;
  bool writable;
};

// One split virtqueue as its driver sees it, in the 16 KiB at `base`.
class DriverQueue {
 public:
  DriverQueue(const GuestMemory& memory, uint64_t base, uint16_t size)
      : memory_(&memory), base_(base), size_(size) {}

  uint16_t size() const { return size_; }
  GuestAddress descriptors() const { return {base_}; }
  GuestAddress available() const { return {base_ + 0x1000}; }
  GuestAddress used() const { return {base_ + 0x2000}; }

  QueueState Setup() const {
    QueueState state;
    state.size = size_;
    state.ready = true;
    state.descriptors = descriptors();
    state.available = available();
    state.used = used();
    return state;
  }

  void WriteDescriptor(uint16_t index, vring_desc descriptor) {
    CHECK(memory_->WriteObject(descriptors() + index * sizeof descriptor, descriptor));
  }
  void WriteAvailable(uint16_t slot, uint16_t head) {
    CHECK(memory_->WriteObject(available() + 4 + 2u * (slot % size_), head));
  }
  void SetAvailableIndex(uint16_t index) {
    available_index_ = index;
    CHECK(memory_->Store(available() + 2, index, __ATOMIC_RELEASE));
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
  }

  // Adds a chain, with descriptors taken in turn (so that the caller must not
  // have more than size() in flight). Returns its head.
  uint16_t Add(std::span<const Buffer> buffers) {
    const uint16_t head = next_descriptor_;
    for (size_t i = 0; i < buffers.size(); ++i) {
      const uint16_t index = next_descriptor_;
      next_descriptor_ = static_cast<uint16_t>((next_descriptor_ + 1) % size_);
      const bool last = i + 1 == buffers.size();
      vring_desc descriptor = {};
      descriptor.addr = buffers[i].address;
      descriptor.len = buffers[i].length;
      descriptor.flags = static_cast<uint16_t>((buffers[i].writable ? VRING_DESC_F_WRITE : 0) |
                                               (last ? 0 : VRING_DESC_F_NEXT));
      descriptor.next = last ? 0 : next_descriptor_;
      WriteDescriptor(index, descriptor);
    }
    WriteAvailable(available_index_, head);
    SetAvailableIndex(static_cast<uint16_t>(available_index_ + 1));
    return head;
  }
  uint16_t Add(std::initializer_list<Buffer> buffers) {
    return Add(std::span(buffers.begin(), buffers.size()));
  }

  std::optional<vring_used_elem> TakeUsed() {
    uint16_t index;
    CHECK(memory_->Load(used() + 2, index, __ATOMIC_ACQUIRE));
    if (index == last_used_) return std::nullopt;
    vring_used_elem element;
    CHECK(memory_->ReadObject(used() + 4 + sizeof element * (last_used_ % size_), element));
    ++last_used_;
    return element;
  }

  // VIRTIO_F_EVENT_IDX: the used index that is worth an interrupt, and the
  // available index that is worth a notification.
  void SetUsedEvent(uint16_t value) {
    CHECK(memory_->Store(available() + 4 + 2u * size_, value, __ATOMIC_RELEASE));
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
  }
  uint16_t available_event() const {
    uint16_t value;
    CHECK(memory_->Load(used() + 4 + sizeof(vring_used_elem) * size_, value, __ATOMIC_ACQUIRE));
    return value;
  }
  // Whether a driver would notify after going from `before` to its index now.
  bool WouldNotify(uint16_t before) const {
    return vring_need_event(available_event(), available_index_, before) != 0;
  }
  void SetAvailableFlags(uint16_t flags) { CHECK(memory_->WriteObject(available(), flags)); }
  uint16_t used_flags() const {
    uint16_t flags;
    CHECK(memory_->ReadObject(used(), flags));
    return flags;
  }
  uint16_t available_index() const { return available_index_; }
  uint16_t last_used() const { return last_used_; }

 private:
  const GuestMemory* memory_;
  uint64_t base_;
  uint16_t size_;
  uint16_t next_descriptor_ = 0;
  uint16_t available_index_ = 0;
  uint16_t last_used_ = 0;
};

// A virtio-mmio register window as its driver sees it.
class MmioDriver {
 public:
  explicit MmioDriver(BusDevice& device) : device_(device) {}

  uint32_t Read(uint64_t offset) const {
    uint32_t value = 0;
    device_.Read(offset, {reinterpret_cast<uint8_t*>(&value), sizeof value});
    return value;
  }
  void Write(uint64_t offset, uint32_t value) const {
    device_.Write(offset, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
  }
  uint32_t status() const { return Read(VIRTIO_MMIO_STATUS); }
  void SetStatus(uint32_t value) const { Write(VIRTIO_MMIO_STATUS, value); }
  void AddStatus(uint32_t bits) const { SetStatus(status() | bits); }

  uint64_t DeviceFeatures() const {
    Write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    const uint64_t high = Read(VIRTIO_MMIO_DEVICE_FEATURES);
    Write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    return high << 32 | Read(VIRTIO_MMIO_DEVICE_FEATURES);
  }
  void SetFeatures(uint64_t features) const {
    Write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    Write(VIRTIO_MMIO_DRIVER_FEATURES, static_cast<uint32_t>(features >> 32));
    Write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    Write(VIRTIO_MMIO_DRIVER_FEATURES, static_cast<uint32_t>(features));
  }
  void SetUpQueue(uint32_t index, const QueueState& queue) const {
    Write(VIRTIO_MMIO_QUEUE_SEL, index);
    Write(VIRTIO_MMIO_QUEUE_NUM, queue.size);
    WriteAddress(VIRTIO_MMIO_QUEUE_DESC_LOW, queue.descriptors);
    WriteAddress(VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.available);
    WriteAddress(VIRTIO_MMIO_QUEUE_USED_LOW, queue.used);
    Write(VIRTIO_MMIO_QUEUE_READY, 1);
  }
  // Reset up to FEATURES_OK, with all features that the device offers.
  void Negotiate() const { Negotiate(DeviceFeatures()); }
  void Negotiate(uint64_t features) const {
    SetStatus(0);
    AddStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    AddStatus(VIRTIO_CONFIG_S_DRIVER);
    SetFeatures(features);
    AddStatus(VIRTIO_CONFIG_S_FEATURES_OK);
  }

 private:
  void WriteAddress(uint64_t low_offset, GuestAddress address) const {
    Write(low_offset, static_cast<uint32_t>(address.value));
    Write(low_offset + 4, static_cast<uint32_t>(address.value >> 32));
  }

  BusDevice& device_;
};

}  // namespace forklet::testing
