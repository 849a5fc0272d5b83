#include "devices/doorbell.h"

#include <algorithm>
#include <cstring>

namespace forklet {

namespace {
constexpr uint64_t kEventRegister = 0x00;
}  // namespace

void Doorbell::Read(uint64_t, std::span<uint8_t> data) {
  std::fill(data.begin(), data.end(), uint8_t{0});
  ignored_accesses_.fetch_add(1, std::memory_order_relaxed);
}

void Doorbell::Write(uint64_t offset, std::span<const uint8_t> data) {
  uint32_t value = 0;
  if (offset == kEventRegister && data.size() == sizeof value) {
    std::memcpy(&value, data.data(), sizeof value);
    if (value >= static_cast<uint32_t>(DoorbellEvent::kPowerOff) &&
        value <= static_cast<uint32_t>(DoorbellEvent::kHalt)) {
      on_event_(static_cast<DoorbellEvent>(value));
      return;
    }
  }
  ignored_accesses_.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace forklet
