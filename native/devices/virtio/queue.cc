#include "devices/virtio/queue.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/mutant.h"

namespace forklet {

static_assert(std::endian::native == std::endian::little, "virtio 1.x is little endian");

namespace {

constexpr uint64_t kDescriptorAlign = VRING_DESC_ALIGN_SIZE;
constexpr uint64_t kAvailableAlign = VRING_AVAIL_ALIGN_SIZE;
constexpr uint64_t kUsedAlign = VRING_USED_ALIGN_SIZE;

// Elements of the available and used rings' uint16_t header.
constexpr size_t kFlags = 0;
constexpr size_t kIndex = 1;
constexpr size_t kRing = 2;

// Walks `segments` from `offset`, giving `visit` each host range of at most
// `size` bytes in all; returns the bytes visited.
template <class Visit>
size_t Walk(std::span<const std::span<uint8_t>> segments, size_t offset, size_t size, Visit visit) {
  size_t done = 0;
  for (std::span<uint8_t> segment : segments) {
    if (done == size) break;
    if (offset >= segment.size()) {
      offset -= segment.size();
      continue;
    }
    const size_t count = std::min(segment.size() - offset, size - done);
    visit(segment.subspan(offset, count), done);
    done += count;
    offset = 0;
  }
  return done;
}

}  // namespace

size_t DescriptorChain::Read(size_t offset, std::span<uint8_t> out) const {
  return Walk(readable_, offset, out.size(), [out](std::span<uint8_t> from, size_t done) {
    std::memcpy(out.data() + done, from.data(), from.size());
  });
}

size_t DescriptorChain::Write(size_t offset, std::span<const uint8_t> data) const {
  return Walk(writable_, offset, data.size(), [data](std::span<uint8_t> to, size_t done) {
    std::memcpy(to.data(), data.data() + done, to.size());
  });
}

void DescriptorChain::Clear() {
  readable_.clear();
  writable_.clear();
  readable_bytes_ = 0;
  writable_bytes_ = 0;
}

bool Virtqueue::Enable(const GuestMemory& memory, bool event_idx, uint16_t max_size) {
  const uint64_t size = state_.size;
  if (!std::has_single_bit(size) || size > max_size) return false;
  if (state_.descriptors.value % kDescriptorAlign != 0 ||
      state_.available.value % kAvailableAlign != 0 || state_.used.value % kUsedAlign != 0) {
    return false;
  }
  // Both rings end with an event index, whether it is negotiated or not.
  uint8_t* descriptors = memory.Range(state_.descriptors, sizeof(vring_desc) * size);
  uint8_t* available = memory.Range(state_.available, sizeof(uint16_t) * (kRing + size + 1));
  const uint64_t used_bytes = sizeof(uint16_t) * kRing + sizeof(vring_used_elem) * size;
  uint8_t* used = memory.Range(state_.used, used_bytes + sizeof(uint16_t));
  if (descriptors == nullptr || available == nullptr || used == nullptr) return false;

  // Bounds: the ranges above. Guest RAM is page-aligned on the host, so that
  // the alignment of the guest's addresses is that of these pointers.
  descriptors_ = reinterpret_cast<const vring_desc*>(descriptors);
  available_ = reinterpret_cast<uint16_t*>(available);
  used_header_ = reinterpret_cast<uint16_t*>(used);
  used_ring_ = reinterpret_cast<vring_used_elem*>(used + sizeof(uint16_t) * kRing);
  available_event_ = reinterpret_cast<uint16_t*>(used + used_bytes);
  event_idx_ = event_idx;
  broken_ = false;
  memory_ = &memory;
  return true;
}

void Virtqueue::Reset() { *this = Virtqueue(); }

bool Virtqueue::Break() {
  broken_ = true;
  return false;
}

bool Virtqueue::LoadAvailableIndex(uint16_t& pending) {
  // Acquire: pairs with the driver's barrier between filling ring and
  // descriptors and advancing the index (virtio 1.2 §2.7.13.3).
  const uint16_t index = __atomic_load_n(&available_[kIndex], __ATOMIC_ACQUIRE);
  pending = static_cast<uint16_t>(index - state_.next_available);
  // The driver has no more chains than descriptors: this index is made up.
  if (pending > state_.size) return Break();
  return true;
}

bool Virtqueue::AddDescriptor(const vring_desc& descriptor, DescriptorChain& chain) const {
  uint8_t* host = memory_->Range(GuestAddress{descriptor.addr}, descriptor.len);
  if (host == nullptr) return false;
  const std::span<uint8_t> range(host, descriptor.len);
  if (descriptor.flags & VRING_DESC_F_WRITE) {
    chain.writable_.push_back(range);
    chain.writable_bytes_ += range.size();
    return true;
  }
  // Readable buffers come before writable ones (virtio 1.2 §2.7.4.2).
  if (!chain.writable_.empty()) return false;
  chain.readable_.push_back(range);
  chain.readable_bytes_ += range.size();
  return true;
}

bool Virtqueue::Pop(DescriptorChain& chain) {
  chain.Clear();
  if (!enabled() || broken_) return false;
  uint16_t pending;
  if (!LoadAvailableIndex(pending) || pending == 0) return false;

  const uint16_t mask = static_cast<uint16_t>(state_.size - 1);
  uint16_t next =
      __atomic_load_n(&available_[kRing + (state_.next_available & mask)], __ATOMIC_RELAXED);
  chain.head_ = next;
  for (uint32_t count = 0;; ++count) {
    // More descriptors than there are: a loop.
    if (next >= state_.size || count == state_.size) return Break();
    vring_desc descriptor;
    std::memcpy(&descriptor, &descriptors_[next], sizeof descriptor);
    // The copy above is the only read: the compiler may not go back for more.
    __asm__ volatile("" ::: "memory");
    if ((descriptor.flags & VRING_DESC_F_INDIRECT) || !AddDescriptor(descriptor, chain)) {
      return Break();
    }
    if (!(descriptor.flags & VRING_DESC_F_NEXT)) break;
    next = descriptor.next;
  }
  ++state_.next_available;
  return true;
}

void Virtqueue::PushUsed(uint16_t head, uint32_t written) {
  if (!enabled() || broken_) return;
  if (kMutant == Mutant::kShortUsedLength && written > 0) --written;
  const uint16_t mask = static_cast<uint16_t>(state_.size - 1);
  vring_used_elem& element = used_ring_[state_.next_used & mask];
  __atomic_store_n(&element.id, uint32_t{head}, __ATOMIC_RELAXED);
  __atomic_store_n(&element.len, written, __ATOMIC_RELAXED);
  ++state_.next_used;
  // Release: pairs with the driver's barrier between reading the index and the
  // element and buffers behind it (virtio 1.2 §2.7.14).
  __atomic_store_n(&used_header_[kIndex], state_.next_used, __ATOMIC_RELEASE);
}

bool Virtqueue::EnableNotify() {
  if (!enabled() || broken_) return false;
  if (event_idx_) {
    __atomic_store_n(available_event_, state_.next_available, __ATOMIC_RELAXED);
  } else {
    __atomic_store_n(&used_header_[kFlags], uint16_t{0}, __ATOMIC_RELAXED);
  }
  // Pairs with the driver's full barrier between advancing the available index
  // and reading the event index or flag: either it sees ours, or we its chain.
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  uint16_t pending;
  return LoadAvailableIndex(pending) && pending > 0;
}

void Virtqueue::DisableNotify() {
  if (!enabled() || broken_) return;
  if (event_idx_) {
    // The index just passed: it is not reached again before 65,535 more chains.
    __atomic_store_n(available_event_, static_cast<uint16_t>(state_.next_available - 1),
                     __ATOMIC_RELAXED);
  } else {
    __atomic_store_n(&used_header_[kFlags], uint16_t{VRING_USED_F_NO_NOTIFY}, __ATOMIC_RELAXED);
  }
}

bool Virtqueue::TakeInterrupt() {
  if (!enabled() || state_.signalled_used == state_.next_used) return false;
  const uint16_t before = state_.signalled_used;
  state_.signalled_used = state_.next_used;
  // Pairs with the driver's full barrier between enabling its interrupt and
  // looking at the used index again: either it sees our elements, or we its
  // event index or flag.
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (event_idx_) {
    const uint16_t event = __atomic_load_n(&available_[kRing + state_.size], __ATOMIC_RELAXED);
    return vring_need_event(event, state_.next_used, before) != 0;
  }
  const uint16_t flags = __atomic_load_n(&available_[kFlags], __ATOMIC_RELAXED);
  return (flags & VRING_AVAIL_F_NO_INTERRUPT) == 0;
}

}  // namespace forklet
