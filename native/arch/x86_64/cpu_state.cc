#include "arch/x86_64/cpu_state.h"

#include <x86intrin.h>

#include <algorithm>
#include <cstring>

#include "arch/x86_64/msrs.h"
#include "base/mutant.h"

namespace forklet {

// Ordering requirements:
//  - MP state first: reading it makes KVM apply pending INIT and SIPI events,
//    which changes the registers;
//  - events last: the reads before may turn a pending exception into an
//    injected one.
Result<CpuState> SaveCpu(const VcpuFd& vcpu, const HostProfile& host) {
  CpuState state;
  ASSIGN_OR_RETURN(state.mp_state, vcpu.GetMpState());
  ASSIGN_OR_RETURN(state.regs, vcpu.GetRegs());
  ASSIGN_OR_RETURN(state.sregs, vcpu.GetSregs());
  ASSIGN_OR_RETURN(state.xsave, vcpu.GetXsave(host.xsave_bytes));
  ASSIGN_OR_RETURN(state.xcrs, vcpu.GetXcrs());
  ASSIGN_OR_RETURN(state.debug, vcpu.GetDebugRegs());
  ASSIGN_OR_RETURN(state.lapic, vcpu.GetLapic());
  ASSIGN_OR_RETURN(state.msrs, vcpu.GetMsrs(host.msrs));
  if (state.msrs.size() != host.msrs.size()) {
    return Error{ErrorCode::kKvm, 0, "KVM_GET_MSRS",
                 "only " + std::to_string(state.msrs.size()) + " of " +
                     std::to_string(host.msrs.size()) + " MSRs can be read"};
  }
  ASSIGN_OR_RETURN(state.tsc, vcpu.GetMsr(kMsrTsc));
  if (host.tsc_deadline) {
    ASSIGN_OR_RETURN(state.tsc_deadline, vcpu.GetMsr(kMsrTscDeadline));
  }
  ASSIGN_OR_RETURN(state.events, vcpu.GetEvents());
  return state;
}

// Ordering requirements (KVM API, and what the kernel does behind it):
//  - MP state before the registers, which it may reset;
//  - SREGS before the local APIC: they hold the APIC's base and mode;
//  - XCRS after XSAVE, so that XCR0 does not veto the state's components, which
//    KVM checks against what the vCPU supports;
//  - the local APIC before the MSRs: the deadline MSR is ignored unless the
//    APIC's timer is in deadline mode;
//  - events last: setting registers clears pending exceptions.
Status RestoreCpu(const VcpuFd& vcpu, const CpuState& state) {
  TRY(vcpu.SetMpState(state.mp_state));
  TRY(vcpu.SetRegs(state.regs));
  TRY(vcpu.SetSregs(state.sregs));
  TRY(vcpu.SetXsave(state.xsave));
  TRY(vcpu.SetXcrs(state.xcrs));
  TRY(vcpu.SetDebugRegs(state.debug));
  if (kMutant != Mutant::kForkNoLocalApic) TRY(vcpu.SetLapic(state.lapic));
  if (kMutant == Mutant::kForkMissingMsr) {
    constexpr uint32_t kLstar = 0xc0000082;
    std::vector<kvm_msr_entry> others = state.msrs;
    std::erase_if(others, [](const kvm_msr_entry& msr) { return msr.index == kLstar; });
    TRY(vcpu.SetMsrs(others));
  } else {
    TRY(vcpu.SetMsrs(state.msrs));
  }
  // What KVM reports as valid is what it takes, but for what a save did not ask
  // for: all of it is meant.
  kvm_vcpu_events events = state.events;
  return vcpu.SetEvents(events);
}

Result<uint64_t> GuestTsc(const VcpuFd& vcpu, const HostProfile& host) {
  if (host.host_tsc) return static_cast<uint64_t>(__rdtsc());
  return vcpu.GetMsr(kMsrTsc);
}

Result<uint64_t> StartCpuTime(const VcpuFd& vcpu, const CpuState& state, const HostProfile& host) {
  kvm_msr_entry entry = {};
  if (!host.host_tsc) {
    entry.index = kMsrTsc;
    entry.data = state.tsc;
    TRY(vcpu.SetMsrs({&entry, 1}));
  }
  ASSIGN_OR_RETURN(const uint64_t now, GuestTsc(vcpu, host));
  if (host.tsc_deadline && state.tsc_deadline != 0) {
    entry.index = kMsrTscDeadline;
    // A deadline that had passed when the vCPU was saved stays one that has.
    const auto ahead = static_cast<int64_t>(state.tsc_deadline - state.tsc);
    entry.data = ahead > 0 ? now + static_cast<uint64_t>(ahead) : now;
    TRY(vcpu.SetMsrs({&entry, 1}));
  }
  return now;
}

Result<IrqchipState> SaveIrqchip(const VmFd& vm) {
  IrqchipState state;
  for (uint32_t chip = 0; chip < state.chips.size(); ++chip) {
    ASSIGN_OR_RETURN(state.chips[chip], vm.GetIrqchip(chip));
  }
  ASSIGN_OR_RETURN(state.clock_ns, vm.GetClock());
  return state;
}

Status RestoreIrqchip(const VmFd& vm, const IrqchipState& state) {
  if (kMutant == Mutant::kForkNoIrqchip) return Ok();
  for (const kvm_irqchip& chip : state.chips) TRY(vm.SetIrqchip(chip));
  return Ok();
}

bool HasPendingInterrupt(const CpuState& state) {
  const kvm_vcpu_events& events = state.events;
  if (events.interrupt.injected != 0 || events.exception.injected != 0 ||
      events.exception.pending != 0 || events.nmi.injected != 0 || events.nmi.pending != 0) {
    return true;
  }
  // The interrupt request register: 8 words of 32 vectors, 16 bytes apart (SDM
  // volume 3, table 11-1).
  constexpr size_t kIrr = 0x200;
  constexpr size_t kStride = 0x10;
  for (size_t word = 0; word < 8; ++word) {
    uint32_t pending;
    std::memcpy(&pending, state.lapic.regs + kIrr + word * kStride, sizeof pending);
    if (pending != 0) return true;
  }
  return false;
}

bool HasTimerDue(const CpuState& state, const HostProfile& host) {
  // A few times what a parked program takes for an answer, and less than a tick.
  constexpr int64_t kSoonMs = 2;
  if (!host.tsc_deadline || state.tsc_deadline == 0) return false;
  const auto ahead = static_cast<int64_t>(state.tsc_deadline - state.tsc);
  return ahead < kSoonMs * host.tsc_khz;
}

}  // namespace forklet
