// Every guest-physical address that the host chooses, in one place.
#pragma once

#include <cstdint>

#include "memory/guest_address.h"

namespace forklet::layout {

inline constexpr uint64_t kPageSize = 4096;

// Below 640 KiB: what the kernel reads once at boot, and then frees.
inline constexpr GuestAddress kGdt{0x500};
inline constexpr GuestAddress kZeroPage{0x7000};    // struct boot_params
inline constexpr GuestAddress kPageTables{0x9000};  // PML4, PDPT, 4 page directories: 6 pages
inline constexpr GuestAddress kBootStack{0x8ff0};
inline constexpr GuestAddress kCommandLine{0x20000};
inline constexpr uint64_t kCommandLineBytes = 2048;  // COMMAND_LINE_SIZE of x86 Linux

// The exchange: RAM pages that e820 reserves, through which the host and a
// parked program hand each other input and answer.
inline constexpr GuestAddress kExchange{0x8f000};
inline constexpr uint64_t kExchangePages = 15;
// The mailbox: a RAM page that e820 reserves, written by the host to tell a
// forked VM who it is.
inline constexpr GuestAddress kMailbox{0x9e000};
// First address that e820 does not offer as RAM below 1 MiB: the exchange, the
// mailbox, the MP table and the legacy holes lie above it.
inline constexpr GuestAddress kLowRamEnd{0x8f000};
static_assert(kExchange + kExchangePages * kPageSize == kMailbox);
static_assert(kLowRamEnd == kExchange);

// The MP floating pointer is looked for in the last KiB below 640 KiB.
inline constexpr GuestAddress kMpTable{0x9fc00};
inline constexpr GuestAddress kMpTableEnd{0xa0000};

// The ACPI tables, in the range that kernels search for their root pointer: RAM
// that e820 reserves.
inline constexpr GuestAddress kRsdp{0xe0000};
inline constexpr GuestAddress kAcpiTablesEnd{0xf0000};

// Kernels are loaded at or above 1 MiB.
inline constexpr GuestAddress kHighRam{0x100000};

// The MMIO hole: RAM that does not fit below it continues at 4 GiB.
inline constexpr GuestAddress kMmioHole{0xc0000000};
inline constexpr GuestAddress kHighRegion{0x100000000};

// Devices. The GSI is the IOAPIC pin, and the IRQ number on the command line.
inline constexpr GuestAddress kDoorbell{0xd0000000};
inline constexpr GuestAddress kVirtioMmio{0xd0001000};  // One page a device
inline constexpr uint32_t kVirtioGsi = 5;               // The first device's
inline constexpr uint32_t kDoorbellGsi = 7;             // Calls a program back to its park
inline constexpr uint16_t kSerialPort = 0x3f8;          // COM1, 8 ports
inline constexpr uint32_t kSerialGsi = 4;
inline constexpr uint16_t kPowerPort = 0x600;  // ACPI's sleep and reset registers, 2 ports

inline constexpr GuestAddress kIoApic{0xfec00000};
inline constexpr GuestAddress kLocalApic{0xfee00000};
// Three pages that VMX needs for its real-mode TSS, and one for the identity
// map; in the hole, below the BIOS.
inline constexpr GuestAddress kTss{0xfffbd000};
inline constexpr GuestAddress kIdentityMap{0xfffbc000};

}  // namespace forklet::layout
