#pragma once

#include <cstdint>

#include "memory/guest_memory.h"

namespace forklet {

// The ports behind layout::kPowerPort by which the tables tell a guest to power
// off and to restart, SLEEP_CONTROL_REG and RESET_REG, and what it writes there:
// SLP_EN with the sleep type of S5, and RESET_VALUE (ACPI 6.4 §4.8.3.7, §4.8.3.6).
// The device AcpiPower listens.
inline constexpr uint16_t kAcpiSleepControl = 0;
inline constexpr uint16_t kAcpiResetRegister = 1;
inline constexpr uint16_t kAcpiPowerPorts = 2;
inline constexpr uint8_t kAcpiSleepTypeS5 = 5;
inline constexpr uint8_t kAcpiSleepS5 = 1u << 5 | kAcpiSleepTypeS5 << 2;
inline constexpr uint8_t kAcpiReset = 1;

// Writes the ACPI tables (ACPI 6.4) for kernels that look for devices there and
// not on their command line: RSDP, XSDT, FADT of a hardware-reduced system,
// MADT, and a DSDT with the serial port, `virtio_devices` virtio-mmio devices
// and the sleep type of S5. Kernels without ACPI never look.
void WriteAcpiTables(const GuestMemory& memory, uint32_t vcpus, uint32_t virtio_devices);

}  // namespace forklet
