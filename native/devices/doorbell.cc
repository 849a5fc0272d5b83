#include "devices/doorbell.h"

#include <algorithm>
#include <cstring>

namespace forklet {

namespace {
constexpr uint64_t kEvent = 0x00;
constexpr uint64_t kParkAgent = 0x08;
constexpr uint64_t kParkProgram = 0x10;
constexpr uint64_t kReseeded = 0x18;
constexpr uint64_t kProgramGone = 0x1c;

// The same for everybody: who a VM is, it reads in the mailbox.
constexpr uint32_t kParked = 1;
}  // namespace

void Doorbell::Read(uint64_t offset, std::span<uint8_t> data) {
  std::fill(data.begin(), data.end(), uint8_t{0});
  const bool agent = offset == kParkAgent;
  if (data.size() != sizeof kParked || (!agent && offset != kParkProgram)) return Ignore();
  std::memcpy(data.data(), &kParked, sizeof kParked);
  host_.OnPark(agent ? ParkPlace::kAgent : ParkPlace::kProgram);
}

void Doorbell::Write(uint64_t offset, std::span<const uint8_t> data) {
  uint32_t value = 0;
  if (data.size() != sizeof value) return Ignore();
  std::memcpy(&value, data.data(), sizeof value);
  switch (offset) {
    case kEvent:
      if (value < static_cast<uint32_t>(DoorbellEvent::kPowerOff) ||
          value > static_cast<uint32_t>(DoorbellEvent::kHalt)) {
        return Ignore();
      }
      return host_.OnDoorbellEvent(static_cast<DoorbellEvent>(value));
    case kReseeded:
      return host_.OnReseeded(value);
    case kProgramGone:
      return host_.OnProgramGone();
    default:
      return Ignore();
  }
}

}  // namespace forklet
