#include <cstring>

#include "arch/x86_64/completion/operations.h"
#include "arch/x86_64/completion/x86.h"
#include "arch/x86_64/completion/xsave_area.h"

namespace forklet {
namespace {

constexpr uint64_t kDescriptorBytes = 8;
constexpr uint64_t kSelectorRpl = 3;
constexpr uint64_t kSelectorLdt = 4;

// Of a descriptor, as one 64-bit value.
constexpr uint64_t kDescriptorUser = uint64_t{1} << 44;  // Code or data, not system
constexpr uint64_t kDescriptorCode = uint64_t{1} << 43;
constexpr uint64_t kDescriptorConforming = uint64_t{1} << 42;  // Of code
constexpr uint64_t kDescriptorAccessible = uint64_t{1} << 41;  // Data: writable. Code: readable
constexpr int kDescriptorDplShift = 45;

bool ReadSelector(CompletionContext& context, const Instruction& instruction, uint16_t& selector) {
  if (!instruction.memory) {
    selector = static_cast<uint16_t>(context.registers().gpr[instruction.rm]);
    return true;
  }
  GuestRange source(context, instruction);
  if (!source.Touch(0, sizeof selector, MemoryAccess::kRead)) return false;
  source.Read(0, {reinterpret_cast<uint8_t*>(&selector), sizeof selector});
  return true;
}

// Whether the segment can be read, or written, from the current privilege
// level; SDM, volume 2, VERR/VERW.
bool IsAccessible(uint64_t descriptor, uint16_t selector, uint8_t cpl, bool write) {
  if ((descriptor & kDescriptorUser) == 0) return false;
  const bool code = (descriptor & kDescriptorCode) != 0;
  const bool accessible = (descriptor & kDescriptorAccessible) != 0;
  if (write ? code || !accessible : code && !accessible) return false;
  if (code && (descriptor & kDescriptorConforming) != 0) return true;
  const auto dpl = static_cast<uint8_t>((descriptor >> kDescriptorDplShift) & 3);
  return dpl >= cpl && dpl >= (selector & kSelectorRpl);
}

}  // namespace

bool ExecuteClacStac(CompletionContext& context, const Instruction& instruction) {
  if (context.control().cpl != 0) return context.RaiseUndefined();
  context.SetFlags(x86::kFlagAc, instruction.operation == Operation::kStac ? x86::kFlagAc : 0);
  return true;
}

bool ExecutePkru(CompletionContext& context, const Instruction& instruction) {
  if ((context.control().cr4 & x86::kCr4Pke) == 0) return context.RaiseUndefined();
  const auto& gpr = context.registers().gpr;
  const bool write = instruction.operation == Operation::kWrpkru;
  if (static_cast<uint32_t>(gpr[kRcx]) != 0) return context.RaiseProtection();
  if (write && static_cast<uint32_t>(gpr[kRdx]) != 0) return context.RaiseProtection();
  std::span<uint8_t> area;
  if (!context.GetXsave(area)) return false;
  XsaveArea state(area);
  if (!state.Has(kXstatePkruBit)) return context.RaiseUndefined();
  if (!write) {
    context.WriteRegister(kRax, 4, state.Pkru());
    context.WriteRegister(kRdx, 4, 0);
    return true;
  }
  const auto pkru = static_cast<uint32_t>(gpr[kRax]);
  std::memcpy(state.Component(kXstatePkruBit).data(), &pkru, sizeof pkru);
  state.set_xstate_bv(state.xstate_bv() | uint64_t{1} << kXstatePkruBit);
  return context.SetXsave();
}

// KVM's own RDTSC reads the same MSR.
bool ExecuteRdtscp(CompletionContext& context, const Instruction&) {
  if ((context.control().cr4 & x86::kCr4Tsd) != 0 && context.control().cpl != 0) {
    return context.RaiseProtection();
  }
  uint64_t tsc = 0, aux = 0;
  if (!context.GetMsr(x86::kMsrTsc, tsc) || !context.GetMsr(x86::kMsrTscAux, aux)) return false;
  context.WriteRegister(kRax, 4, tsc);
  context.WriteRegister(kRdx, 4, tsc >> 32);
  context.WriteRegister(kRcx, 4, aux);
  return true;
}

bool ExecuteVerify(CompletionContext& context, const Instruction& instruction) {
  uint16_t selector = 0;
  if (!ReadSelector(context, instruction, selector)) return false;
  const CpuControl& control = context.control();
  const bool local = (selector & kSelectorLdt) != 0;
  const uint64_t offset = selector & ~(kSelectorRpl | kSelectorLdt);
  const uint64_t limit = local ? control.ldt_limit : control.gdt_limit;
  const bool null_selector = !local && offset == 0;

  bool accessible = false;
  if (!null_selector && (!local || control.has_ldt) && offset + kDescriptorBytes - 1 <= limit) {
    GuestRange table(context, (local ? control.ldt_base : control.gdt_base) + offset, false);
    uint64_t descriptor = 0;
    if (!table.Touch(0, kDescriptorBytes, MemoryAccess::kSystemRead)) return false;
    table.Read(0, {reinterpret_cast<uint8_t*>(&descriptor), sizeof descriptor});
    accessible =
        IsAccessible(descriptor, selector, control.cpl, instruction.operation == Operation::kVerw);
  }
  context.SetFlags(x86::kFlagZf, accessible ? x86::kFlagZf : 0);
  return true;
}

}  // namespace forklet
