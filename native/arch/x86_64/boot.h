// The Linux/x86 64-bit boot protocol: what must be in memory and registers when
// the boot processor enters the kernel (Documentation/arch/x86/boot.rst).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "kvm/vcpu_fd.h"
#include "memory/guest_memory.h"

namespace forklet {

// Where the initramfs lies in guest memory; size 0 when there is none.
struct InitramfsRange {
  GuestAddress start;
  uint64_t size = 0;
};

// Copies the segments, one behind the other, to the top of the memory below the
// MMIO hole. Fails with kNoMemory when they and the kernel, which ends at
// `kernel_end`, do not fit together with some room to unpack them.
Result<InitramfsRange> LoadInitramfs(const GuestMemory& memory,
                                     const std::vector<std::vector<uint8_t>>& segments,
                                     GuestAddress kernel_end);

// Writes command line, zero page, page tables and GDT. The command line has
// been checked against layout::kCommandLineBytes by ComposeCommandLine.
// `setup_header` is a bzImage's own, or empty.
void WriteBootParameters(const GuestMemory& memory, const std::string& command_line,
                         const InitramfsRange& initramfs, const std::vector<uint8_t>& setup_header);

// Puts the boot processor into 64-bit mode at `entry`, as the protocol asks.
// The CPUID table is set already.
Status SetBootRegisters(const VcpuFd& vcpu, GuestAddress entry);

// What each vCPU needs that its reset state lacks: memory types, string
// instructions on, and the wiring of its local APIC's pins.
Status SetBootMsrs(const VcpuFd& vcpu);
Status SetBootLapic(const VcpuFd& vcpu);

// Only for hosts with the quirk `xsetbv-unseen`: XCR0 has from the start what
// Linux will write there, so that KVM knows the value without seeing the write.
Status SetBootXcr0(const VcpuFd& vcpu, uint64_t components);

}  // namespace forklet
