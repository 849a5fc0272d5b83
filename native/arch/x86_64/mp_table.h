#pragma once

#include <cstdint>

#include "memory/guest_memory.h"

namespace forklet {

inline constexpr uint32_t kMaxVcpus = 16;
// The IOAPIC's id must differ from every local APIC's.
inline constexpr uint8_t kIoApicId = kMaxVcpus + 1;

// Writes the Intel MultiProcessor table (specification 1.4) that tells a kernel
// without ACPI which vCPUs exist and how the IOAPIC's pins are wired: ISA IRQ n
// to pin n, edge-triggered, for the serial port, the doorbell and `virtio_devices`
// devices. Pins that nothing uses are left out: each costs a guest kernel a descriptor.
void WriteMpTable(const GuestMemory& memory, uint32_t vcpus, uint32_t virtio_devices);

}  // namespace forklet
