#include "vm/completion_access.h"

namespace forklet {

namespace {
constexpr uint8_t kDebugVector = 1;
constexpr uint8_t kPageFaultVector = 14;
}  // namespace

Result<CpuRegisters> CompletionAccess::GetRegisters() {
  ASSIGN_OR_RETURN(const kvm_regs regs, vcpu_.GetRegs());
  return CpuRegisters{
      {regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8,
       regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15},
      regs.rip,
      regs.rflags};
}

Status CompletionAccess::SetRegisters(const CpuRegisters& registers) {
  const auto& gpr = registers.gpr;
  kvm_regs regs = {};
  regs.rax = gpr[0];
  regs.rcx = gpr[1];
  regs.rdx = gpr[2];
  regs.rbx = gpr[3];
  regs.rsp = gpr[4];
  regs.rbp = gpr[5];
  regs.rsi = gpr[6];
  regs.rdi = gpr[7];
  regs.r8 = gpr[8];
  regs.r9 = gpr[9];
  regs.r10 = gpr[10];
  regs.r11 = gpr[11];
  regs.r12 = gpr[12];
  regs.r13 = gpr[13];
  regs.r14 = gpr[14];
  regs.r15 = gpr[15];
  regs.rip = registers.rip;
  regs.rflags = registers.rflags;
  TRY(vcpu_.SetRegs(regs));
  // The instruction is over, and with it the shadow of an STI or MOV SS before
  // it. Rare enough that asking costs more than setting.
  ASSIGN_OR_RETURN(kvm_vcpu_events events, vcpu_.GetEvents());
  if (events.interrupt.shadow == 0) return Ok();
  events.interrupt.shadow = 0;
  events.flags |= KVM_VCPUEVENT_VALID_SHADOW;
  return vcpu_.SetEvents(events);
}

Result<CpuControl> CompletionAccess::GetControl() {
  ASSIGN_OR_RETURN(const kvm_sregs sregs, vcpu_.GetSregs());
  CpuControl control = {};
  control.cr0 = sregs.cr0;
  control.cr3 = sregs.cr3;
  control.cr4 = sregs.cr4;
  control.efer = sregs.efer;
  control.fs_base = sregs.fs.base;
  control.gs_base = sregs.gs.base;
  control.gdt_base = sregs.gdt.base;
  control.ldt_base = sregs.ldt.base;
  control.gdt_limit = sregs.gdt.limit;
  control.ldt_limit = sregs.ldt.limit;
  control.has_ldt = sregs.ldt.present != 0 && sregs.ldt.unusable == 0;
  control.code64 = sregs.cs.l != 0;
  // The privilege level is SS's: CS's differs while a conforming segment runs.
  control.cpl = sregs.ss.dpl;
  return control;
}

Result<uint64_t> CompletionAccess::GetXcr0() {
  ASSIGN_OR_RETURN(const kvm_xcrs xcrs, vcpu_.GetXcrs());
  for (uint32_t i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; ++i) {
    if (xcrs.xcrs[i].xcr == 0) return static_cast<uint64_t>(xcrs.xcrs[i].value);
  }
  return Error{ErrorCode::kKvm, 0, "KVM_GET_XCRS", "XCR0 is missing"};
}

Result<std::span<uint8_t>> CompletionAccess::GetXsave() {
  ASSIGN_OR_RETURN(xsave_, vcpu_.GetXsave(xsave_bytes_));
  return std::span<uint8_t>(xsave_);
}

Status CompletionAccess::Inject(const GuestException& exception) {
  if (exception.vector == kPageFaultVector) {
    ASSIGN_OR_RETURN(kvm_sregs sregs, vcpu_.GetSregs());
    sregs.cr2 = exception.payload;
    TRY(vcpu_.SetSregs(sregs));
  } else if (exception.vector == kDebugVector) {
    ASSIGN_OR_RETURN(kvm_debugregs debug, vcpu_.GetDebugRegs());
    debug.dr6 |= exception.payload;
    TRY(vcpu_.SetDebugRegs(debug));
  }
  ASSIGN_OR_RETURN(kvm_vcpu_events events, vcpu_.GetEvents());
  events.exception.injected = 1;
  events.exception.nr = exception.vector;
  events.exception.has_error_code = exception.error_code.has_value() ? 1 : 0;
  events.exception.error_code = exception.error_code.value_or(0);
  return vcpu_.SetEvents(events);
}

}  // namespace forklet
