#include "devices/virtio/rng.h"

#include <linux/virtio_ids.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

namespace forklet {

namespace {
constexpr uint16_t kQueueSizes[] = {8};
// Per chain: the guest may ask for any length, and is content with less.
constexpr size_t kMaxRequestBytes = 4096;
}  // namespace

uint32_t RngDevice::type() const { return VIRTIO_ID_RNG; }

std::span<const uint16_t> RngDevice::queue_sizes() const { return kQueueSizes; }

void RngDevice::ReadConfig(uint64_t, std::span<uint8_t> data) const {
  std::fill(data.begin(), data.end(), uint8_t{0});
}

uint32_t RngDevice::Fill() {
  size_t written = 0;
  for (std::span<uint8_t> segment : chain_.writable()) {
    segment = segment.first(std::min(segment.size(), kMaxRequestBytes - written));
    while (!segment.empty()) {
      const ssize_t count = ::getrandom(segment.data(), segment.size(), 0);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return static_cast<uint32_t>(written);
      written += static_cast<size_t>(count);
      segment = segment.subspan(static_cast<size_t>(count));
    }
  }
  return static_cast<uint32_t>(written);
}

Turn RngDevice::ProcessQueue(uint16_t index) {
  Virtqueue& queue = queues_[index];
  TurnBudget budget;
  while (!budget.exhausted()) {
    if (queue.Pop(chain_)) {
      const uint32_t written = Fill();
      queue.PushUsed(chain_.head(), written);
      budget.Spend(written);
      continue;
    }
    if (!queue.EnableNotify()) return Turn::kIdle;
    // A driver that adds chains and takes them back could keep us here.
    budget.Spend(0);
  }
  return Turn::kMoreWork;
}

}  // namespace forklet
