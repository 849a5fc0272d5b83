#include "devices/acpi_power.h"

#include <algorithm>

#include "arch/x86_64/acpi.h"

namespace forklet {

void AcpiPower::Read(uint64_t, std::span<uint8_t> data) {
  std::fill(data.begin(), data.end(), uint8_t{0});
}

void AcpiPower::Write(uint64_t offset, std::span<const uint8_t> data) {
  if (data.size() == 1) {
    if (offset == kAcpiSleepControl && data[0] == kAcpiSleepS5) {
      return on_event_(PowerEvent::kPowerOff);
    }
    if (offset == kAcpiResetRegister && data[0] == kAcpiReset) {
      return on_event_(PowerEvent::kRestart);
    }
  }
  ignored_writes_.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace forklet
