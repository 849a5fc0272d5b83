#include "devices/virtio/mmio.h"

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "base/mutant.h"

namespace forklet {

static_assert(VirtioMmio::kQueueNotify == VIRTIO_MMIO_QUEUE_NOTIFY);

namespace {

constexpr uint32_t kMagic = 0x74726976;  // "virt"
constexpr uint32_t kVersion = 2;
constexpr uint32_t kVendorId = 0x4c4b5246;  // "FRKL"

// Length of a shared memory region that does not exist (virtio 1.2 §4.2.2.1).
constexpr uint32_t kNoSharedMemory = 0xffffffff;

// The bits of the status register that a driver sets.
constexpr uint32_t kDriverBits = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                                 VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK |
                                 VIRTIO_CONFIG_S_FAILED;

constexpr uint64_t Bit(unsigned number) { return uint64_t{1} << number; }

void SetLow(uint64_t& target, uint32_t value) { target = (target & ~uint64_t{0xffffffff}) | value; }
void SetHigh(uint64_t& target, uint32_t value) {
  target = (target & 0xffffffff) | uint64_t{value} << 32;
}

}  // namespace

VirtioMmio::VirtioMmio(VirtioDevice& device, const GuestMemory& memory, InterruptLine& line)
    : device_(device), memory_(memory), line_(line), queues_(device.queue_sizes().size()) {}

Result<std::unique_ptr<VirtioMmio>> VirtioMmio::Create(VirtioDevice& device,
                                                       const GuestMemory& memory,
                                                       InterruptLine& line) {
  for (uint16_t size : device.queue_sizes()) CHECK(std::has_single_bit(size));
  auto transport = std::unique_ptr<VirtioMmio>(new VirtioMmio(device, memory, line));
  for (size_t i = 0; i < transport->queues_.size(); ++i) {
    ASSIGN_OR_RETURN(EventFd notifier, EventFd::Create());
    transport->notifiers_.push_back(std::move(notifier));
  }
  device.Bind(transport->queues_, transport->notifiers_);
  return transport;
}

uint64_t VirtioMmio::offered_features() const {
  return device_.features() | Bit(VIRTIO_F_VERSION_1) | Bit(VIRTIO_RING_F_EVENT_IDX);
}

bool VirtioMmio::features_acceptable(uint64_t driver_features) const {
  return (driver_features & ~offered_features()) == 0 &&
         (driver_features & Bit(VIRTIO_F_VERSION_1)) != 0;
}

bool VirtioMmio::running() const {
  return (state_.status & VIRTIO_CONFIG_S_DRIVER_OK) &&
         !(state_.status & (VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED));
}

void VirtioMmio::Read(uint64_t offset, std::span<uint8_t> data) {
  std::fill(data.begin(), data.end(), uint8_t{0});
  if (offset >= VIRTIO_MMIO_CONFIG) {
    device_.ReadConfig(offset - VIRTIO_MMIO_CONFIG, data);
    return;
  }
  // Registers are accessed by aligned words only (virtio 1.2 §4.2.2.2).
  if (data.size() != sizeof(uint32_t) || offset % sizeof(uint32_t) != 0) {
    CountIgnored();
    return;
  }
  const uint32_t value = ReadRegister(offset);
  std::memcpy(data.data(), &value, sizeof value);
}

uint32_t VirtioMmio::ReadRegister(uint64_t offset) {
  switch (offset) {
    case VIRTIO_MMIO_MAGIC_VALUE:
      return kMagic;
    case VIRTIO_MMIO_VERSION:
      return kVersion;
    case VIRTIO_MMIO_DEVICE_ID:
      return device_.type();
    case VIRTIO_MMIO_VENDOR_ID:
      return kVendorId;
    case VIRTIO_MMIO_INTERRUPT_STATUS:
      return interrupt_status_.load(std::memory_order_acquire);
    case VIRTIO_MMIO_SHM_LEN_LOW:
    case VIRTIO_MMIO_SHM_LEN_HIGH:
    case VIRTIO_MMIO_SHM_BASE_LOW:
    case VIRTIO_MMIO_SHM_BASE_HIGH:
      return kNoSharedMemory;
    case VIRTIO_MMIO_CONFIG_GENERATION:
      return 0;  // The configuration space never changes
    default:
      break;
  }
  std::lock_guard lock(mutex_);
  switch (offset) {
    case VIRTIO_MMIO_DEVICE_FEATURES:
      if (state_.device_features_select > 1) return 0;
      return static_cast<uint32_t>(offered_features() >> (32 * state_.device_features_select));
    case VIRTIO_MMIO_QUEUE_NUM_MAX:
      return state_.queue_select < queues_.size() ? device_.queue_sizes()[state_.queue_select] : 0;
    case VIRTIO_MMIO_QUEUE_READY:
      return state_.queue_select < queues_.size() && queues_[state_.queue_select].state().ready;
    case VIRTIO_MMIO_STATUS:
      return state_.status;
    default:
      CountIgnored();
      return 0;
  }
}

void VirtioMmio::Write(uint64_t offset, std::span<const uint8_t> data) {
  uint32_t value;
  // No device has a writable configuration space.
  if (offset >= VIRTIO_MMIO_CONFIG || offset % sizeof value != 0 || data.size() != sizeof value) {
    CountIgnored();
    return;
  }
  std::memcpy(&value, data.data(), sizeof value);
  WriteRegister(offset, value);
}

void VirtioMmio::WriteRegister(uint64_t offset, uint32_t value) {
  switch (offset) {
    case VIRTIO_MMIO_QUEUE_NOTIFY:
      if (value < notifiers_.size()) {
        notifiers_[value].Signal();
      } else {
        CountIgnored();
      }
      return;
    case VIRTIO_MMIO_INTERRUPT_ACK:
      interrupt_status_.fetch_and(~value, std::memory_order_acq_rel);
      return;
    default:
      break;
  }
  std::lock_guard lock(mutex_);
  switch (offset) {
    case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
      state_.device_features_select = value;
      return;
    case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
      state_.driver_features_select = value;
      return;
    case VIRTIO_MMIO_DRIVER_FEATURES:
      // Settled once FEATURES_OK is set (virtio 1.2 §3.1.1).
      if (state_.status & VIRTIO_CONFIG_S_FEATURES_OK) return CountIgnored();
      if (state_.driver_features_select == 0) {
        SetLow(state_.driver_features, value);
      } else if (state_.driver_features_select == 1) {
        SetHigh(state_.driver_features, value);
      } else if (value != 0) {
        CountIgnored();
      }
      return;
    case VIRTIO_MMIO_QUEUE_SEL:
      state_.queue_select = value;
      return;
    case VIRTIO_MMIO_STATUS:
      WriteStatus(value);
      return;
    default:
      WriteQueueRegister(offset, value);
      return;
  }
}

void VirtioMmio::WriteQueueRegister(uint64_t offset, uint32_t value) {
  // Queues are set up between FEATURES_OK and DRIVER_OK, once each.
  constexpr uint32_t kSetUp = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
  if (state_.queue_select >= queues_.size() ||
      (state_.status & kSetUp) != VIRTIO_CONFIG_S_FEATURES_OK) {
    return CountIgnored();
  }
  QueueState& queue = queues_[state_.queue_select].state();
  if (offset == VIRTIO_MMIO_QUEUE_READY) {
    queue.ready = (value & 1) != 0;
    return;
  }
  if (queue.ready) return CountIgnored();
  switch (offset) {
    case VIRTIO_MMIO_QUEUE_NUM:
      // Zero is no valid size either: Activate refuses it.
      queue.size =
          value <= device_.queue_sizes()[state_.queue_select] ? static_cast<uint16_t>(value) : 0;
      return;
    case VIRTIO_MMIO_QUEUE_DESC_LOW:
      return SetLow(queue.descriptors.value, value);
    case VIRTIO_MMIO_QUEUE_DESC_HIGH:
      return SetHigh(queue.descriptors.value, value);
    case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
      return SetLow(queue.available.value, value);
    case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
      return SetHigh(queue.available.value, value);
    case VIRTIO_MMIO_QUEUE_USED_LOW:
      return SetLow(queue.used.value, value);
    case VIRTIO_MMIO_QUEUE_USED_HIGH:
      return SetHigh(queue.used.value, value);
    default:
      return CountIgnored();
  }
}

void VirtioMmio::WriteStatus(uint32_t value) {
  if (value == 0) return Reset();
  // A driver only adds bits (virtio 1.2 §2.1.1), in the order of the start-up
  // sequence; what comes out of turn is not taken.
  uint32_t added = value & kDriverBits & ~state_.status;
  const auto refuse_without = [&](uint32_t bit, uint32_t condition) {
    if ((added & bit) && ((state_.status | added) & condition) != condition) {
      added &= ~bit;
      CountIgnored();
    }
  };
  refuse_without(VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE);
  refuse_without(VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER);
  if ((added & VIRTIO_CONFIG_S_FEATURES_OK) && !features_acceptable(state_.driver_features)) {
    // The driver reads the bit back to learn that we refuse.
    added &= ~uint32_t{VIRTIO_CONFIG_S_FEATURES_OK};
  }
  refuse_without(VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK);
  state_.status |= added;
  if (added & VIRTIO_CONFIG_S_DRIVER_OK) Activate();
}

void VirtioMmio::Activate() {
  if (!EnableQueues()) return MarkNeedsReset();
  // The device may have something to say, and a driver that filled its queues
  // before this moment had no one to notify.
  for (const EventFd& notifier : notifiers_) notifier.Signal();
}

bool VirtioMmio::EnableQueues() {
  const bool event_idx = (state_.driver_features & Bit(VIRTIO_RING_F_EVENT_IDX)) != 0;
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (!queues_[i].state().ready) continue;
    if (!queues_[i].Enable(memory_, event_idx, device_.queue_sizes()[i])) return false;
  }
  return true;
}

void VirtioMmio::Reset() {
  for (Virtqueue& queue : queues_) queue.Reset();
  interrupt_status_.store(0, std::memory_order_release);
  state_ = Registers();
  // The device lives on the device thread: it hears of this there, before
  // anything that the driver does next.
  state_.reset_pending = true;
  if (!notifiers_.empty()) notifiers_.front().Signal();
}

void VirtioMmio::MarkNeedsReset() {
  state_.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
  needs_reset_count_.fetch_add(1, std::memory_order_relaxed);
  Interrupt(VIRTIO_MMIO_INT_CONFIG);
}

void VirtioMmio::Interrupt(uint32_t cause) {
  // The ring's contents were published before (see TakeInterrupt); the handler
  // sees the cause before the interrupt.
  if (kMutant == Mutant::kLostInterrupt) {
    static std::atomic<uint32_t> count = 0;
    if (++count % 16 == 0) return;
  }
  interrupt_status_.fetch_or(cause, std::memory_order_release);
  line_.Raise();
}

void VirtioMmio::Quiesce() {
  std::lock_guard lock(mutex_);
  quiesced_ = true;
}

void VirtioMmio::Unquiesce() {
  std::lock_guard lock(mutex_);
  quiesced_ = false;
  if (!turn_missed_) return;
  turn_missed_ = false;
  for (const EventFd& notifier : notifiers_) notifier.Signal();
}

Turn VirtioMmio::HandleNotify(uint16_t queue) {
  std::lock_guard lock(mutex_);
  if (quiesced_) {
    turn_missed_ = true;
    return Turn::kIdle;
  }
  if (state_.reset_pending) {
    state_.reset_pending = false;
    device_.HandleReset();
  }
  if (!running()) return Turn::kIdle;
  const Turn turn = device_.ProcessQueue(queue);
  FinishTurn();
  if (turn == Turn::kMoreWork) notifiers_[queue].Signal();
  return turn;
}

void VirtioMmio::FinishTurn() {
  bool interrupt = false;
  bool broken = false;
  for (Virtqueue& queue : queues_) {
    interrupt |= queue.TakeInterrupt();
    broken |= queue.broken();
  }
  // One interrupt for all that the turn returned.
  if (interrupt) Interrupt(VIRTIO_MMIO_INT_VRING);
  if (broken) MarkNeedsReset();
}

VirtioMmio::State VirtioMmio::Save() const {
  std::lock_guard lock(mutex_);
  State state;
  state.status = state_.status;
  state.driver_features = state_.driver_features;
  state.device_features_select = state_.device_features_select;
  state.driver_features_select = state_.driver_features_select;
  state.queue_select = state_.queue_select;
  state.interrupt_status = interrupt_status_.load(std::memory_order_acquire);
  state.reset_pending = state_.reset_pending;
  for (const Virtqueue& queue : queues_) state.queues.push_back(queue.state());
  return state;
}

bool VirtioMmio::Plausible(const State& state) const {
  const auto requires_bits = [&](uint32_t bit, uint32_t condition) {
    return !(state.status & bit) || (state.status & condition);
  };
  // The order of the start-up sequence, as WriteStatus keeps it.
  if ((state.status & ~(kDriverBits | VIRTIO_CONFIG_S_NEEDS_RESET)) != 0 ||
      !requires_bits(VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE) ||
      !requires_bits(VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER) ||
      !requires_bits(VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK) ||
      !requires_bits(VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_CONFIG_S_DRIVER_OK)) {
    return false;
  }
  if ((state.status & VIRTIO_CONFIG_S_FEATURES_OK) && !features_acceptable(state.driver_features)) {
    return false;
  }
  constexpr uint32_t kCauses = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
  if ((state.interrupt_status & ~kCauses) != 0 || state.queues.size() != queues_.size()) {
    return false;
  }
  for (size_t i = 0; i < queues_.size(); ++i) {
    const QueueState& queue = state.queues[i];
    if (queue.size > device_.queue_sizes()[i]) return false;
    // Set up after FEATURES_OK, used after DRIVER_OK.
    QueueState unused = queue;
    unused.next_available = unused.next_used = unused.signalled_used = 0;
    if (!(state.status & VIRTIO_CONFIG_S_FEATURES_OK) && queue != QueueState()) return false;
    if (!(state.status & VIRTIO_CONFIG_S_DRIVER_OK) && queue != unused) return false;
  }
  return true;
}

Status VirtioMmio::Restore(const State& state) {
  if (!Plausible(state)) {
    return Error{ErrorCode::kBadSnapshot, 0, "",
                 "impossible state of the virtio device of type " + std::to_string(device_.type())};
  }
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < queues_.size(); ++i) {
    queues_[i].Reset();
    queues_[i].state() = state.queues[i];
  }
  state_.status = state.status;
  state_.driver_features = state.driver_features;
  state_.device_features_select = state.device_features_select;
  state_.driver_features_select = state.driver_features_select;
  state_.queue_select = state.queue_select;
  state_.reset_pending = state.reset_pending;
  interrupt_status_.store(state.interrupt_status, std::memory_order_release);
  if (running() && !EnableQueues()) {
    // As MarkNeedsReset does, but for the interrupt, which waits for Kick.
    state_.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    needs_reset_count_.fetch_add(1, std::memory_order_relaxed);
    interrupt_status_.fetch_or(VIRTIO_MMIO_INT_CONFIG, std::memory_order_release);
  }
  return Ok();
}

void VirtioMmio::Kick() {
  for (const EventFd& notifier : notifiers_) notifier.Signal();
  if (interrupt_status_.load(std::memory_order_acquire) != 0) line_.Raise();
}

}  // namespace forklet
