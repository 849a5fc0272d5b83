#include "arch/x86_64/completion/operations.h"
#include "arch/x86_64/completion/x86.h"
#include "arch/x86_64/completion/xsave_area.h"

namespace forklet {
namespace {

// The conditions that LDMXCSR and STMXCSR share.
bool CheckSse(CompletionContext& context) {
  const CpuControl& control = context.control();
  if ((control.cr0 & x86::kCr0Em) != 0 || (control.cr4 & x86::kCr4Osfxsr) == 0) {
    return context.RaiseUndefined();
  }
  if ((control.cr0 & x86::kCr0Ts) != 0) return context.Raise(x86::kNoFpuVector);
  return true;
}

}  // namespace

bool ExecuteFwait(CompletionContext& context, const Instruction&) {
  constexpr uint64_t kMonitored = x86::kCr0Mp | x86::kCr0Ts;
  if ((context.control().cr0 & kMonitored) == kMonitored) {
    return context.Raise(x86::kNoFpuVector);
  }
  std::span<uint8_t> area;
  if (!context.GetXsave(area)) return false;
  XsaveArea state(area);
  state.MaterialiseInit(kXstateX87);
  // ES, bit 7: an unmasked exception is pending.
  if ((state.fsw() & 0x80) != 0) return context.Raise(x86::kFpuErrorVector);
  return true;
}

bool ExecuteLdmxcsr(CompletionContext& context, const Instruction& instruction) {
  GuestRange source(context, instruction);
  uint32_t mxcsr = 0;
  std::span<uint8_t> area;
  if (!CheckSse(context) || !source.Touch(0, sizeof mxcsr, MemoryAccess::kRead) ||
      !context.GetXsave(area)) {
    return false;
  }
  source.Read(0, {reinterpret_cast<uint8_t*>(&mxcsr), sizeof mxcsr});
  XsaveArea state(area);
  if ((mxcsr & ~state.mxcsr_mask()) != 0) return context.RaiseProtection();
  // KVM takes the MXCSR only together with state that uses it.
  state.MaterialiseInit(kXstateSse);
  state.set_xstate_bv(state.xstate_bv() | kXstateSse);
  state.set_mxcsr(mxcsr);
  return context.SetXsave();
}

bool ExecuteStmxcsr(CompletionContext& context, const Instruction& instruction) {
  GuestRange target(context, instruction);
  std::span<uint8_t> area;
  if (!CheckSse(context) || !target.Touch(0, sizeof(uint32_t), MemoryAccess::kWrite) ||
      !context.GetXsave(area)) {
    return false;
  }
  target.Write(0, area.subspan(kXsaveMxcsr, sizeof(uint32_t)));
  return true;
}

bool ExecuteXgetbv(CompletionContext& context, const Instruction&) {
  if ((context.control().cr4 & x86::kCr4Osxsave) == 0) return context.RaiseUndefined();
  const auto index = static_cast<uint32_t>(context.registers().gpr[kRcx]);
  const bool in_use = index == 1 && XsaveLayout::OfHost().has_xgetbv1();
  if (index != 0 && !in_use) return context.RaiseProtection();
  uint64_t value = 0;
  if (!context.GetXcr0(value)) return false;
  if (in_use) {
    std::span<uint8_t> area;
    if (!context.GetXsave(area)) return false;
    value &= XsaveArea(area).xstate_bv();
  }
  context.WriteRegister(kRax, 4, value);
  context.WriteRegister(kRdx, 4, value >> 32);
  return true;
}

}  // namespace forklet
