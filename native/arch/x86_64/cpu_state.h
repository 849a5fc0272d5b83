#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "arch/x86_64/host_profile.h"
#include "base/result.h"
#include "kvm/vcpu_fd.h"
#include "kvm/vm_fd.h"

namespace forklet {

// Everything that KVM keeps of one vCPU. Plain values: what is loaded from a
// file is handed to KVM, which checks it.
struct CpuState {
  kvm_mp_state mp_state = {};
  kvm_regs regs = {};
  kvm_sregs sregs = {};
  std::vector<uint8_t> xsave;  // Standard format, HostProfile::xsave_bytes
  kvm_xcrs xcrs = {};
  kvm_debugregs debug = {};
  kvm_lapic_state lapic = {};
  std::vector<kvm_msr_entry> msrs;  // But for the two below
  uint64_t tsc = 0;                 // IA32_TSC at the moment of saving
  uint64_t tsc_deadline = 0;        // IA32_TSC_DEADLINE; 0: not armed
  kvm_vcpu_events events = {};
};

// What the vCPUs of a VM share in KVM.
struct IrqchipState {
  std::array<kvm_irqchip, 3> chips = {};  // PIC master, PIC slave, IOAPIC
  uint64_t clock_ns = 0;                  // kvm-clock
};

// The vCPU stands still, and no MMIO or port access of it is pending.
Result<CpuState> SaveCpu(const VcpuFd& vcpu, const HostProfile& host);
// Restores all but the times, into a vCPU with the same CPUID.
Status RestoreCpu(const VcpuFd& vcpu, const CpuState& state);
// The guest's TSC at this moment.
Result<uint64_t> GuestTsc(const VcpuFd& vcpu, const HostProfile& host);
// Guest time starts at the first entry and not when a fork is made, which may
// wait for hours: sets the TSC and arms the timer anew, as far ahead as it was.
// Returns the guest's TSC as it is now.
Result<uint64_t> StartCpuTime(const VcpuFd& vcpu, const CpuState& state, const HostProfile& host);

Result<IrqchipState> SaveIrqchip(const VmFd& vm);
// All but the clock, which starts at the first entry too.
Status RestoreIrqchip(const VmFd& vm, const IrqchipState& state);

// Whether an interrupt or exception is on its way to the vCPU, which would then
// be the first thing that a fork does.
bool HasPendingInterrupt(const CpuState& state);

// Whether its timer expires so soon that each fork would be interrupted by it in the
// midst of its first work. Also true where the state may lack an interrupt that came
// while it was being read.
bool HasTimerDue(const CpuState& state, const HostProfile& host);

}  // namespace forklet
