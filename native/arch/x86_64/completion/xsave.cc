// XSAVE, XSAVEOPT and XSAVEC, after the SDM, volume 1, chapter 13.
#include <cstring>

#include "arch/x86_64/completion/operations.h"
#include "arch/x86_64/completion/x86.h"
#include "arch/x86_64/completion/xsave_area.h"

namespace forklet {
namespace {

// The components whose content may differ from the initial one. MXCSR counts
// as SSE state here: reporting a component that is stored as in use is always
// right, and a reader that trusts the bit then finds the MXCSR as well.
uint64_t InUse(const XsaveArea& state) {
  uint64_t in_use = state.xstate_bv();
  if (state.mxcsr() != kMxcsrInit) in_use |= kXstateSse;
  return in_use;
}

// The state, complete for what is asked: initial values are written out.
bool GetState(CompletionContext& context, uint64_t rfbm, std::span<uint8_t>& area) {
  if (!context.GetXsave(area)) return false;
  XsaveArea state(area);
  if (!state.HasAll(rfbm)) {
    return context.RefuseBecause("XCR0 enables state that the host does not have");
  }
  state.MaterialiseInit(rfbm);
  return true;
}

bool TouchLegacy(GuestRange& target, uint64_t components, bool mxcsr) {
  if ((components & kXstateX87) != 0 &&
      !(target.Touch(kXsaveX87, kXsaveX87Bytes, MemoryAccess::kWrite) &&
        target.Touch(kXsaveSt, kXsaveStBytes, MemoryAccess::kWrite))) {
    return false;
  }
  if (mxcsr && !target.Touch(kXsaveMxcsr, kXsaveMxcsrBytes, MemoryAccess::kWrite)) return false;
  if ((components & kXstateSse) != 0 &&
      !target.Touch(kXsaveXmm, kXsaveXmmBytes, MemoryAccess::kWrite)) {
    return false;
  }
  return target.Touch(kXsaveHeader, kXsaveHeaderBytes, MemoryAccess::kWrite);
}

// Without REX.W, instruction and data pointer are stored as 32-bit offsets, and
// the selectors behind them as zero, like processors that have deprecated them.
void WriteX87(const GuestRange& target, XsaveArea state, bool wide) {
  uint8_t bytes[kXsaveX87Bytes];
  std::memcpy(bytes, state.Bytes(kXsaveX87, sizeof bytes).data(), sizeof bytes);
  if (!wide) {
    std::memset(bytes + kXsaveFip + 4, 0, 4);
    std::memset(bytes + kXsaveFdp + 4, 0, 4);
  }
  target.Write(kXsaveX87, bytes);
  target.Write(kXsaveSt, state.Bytes(kXsaveSt, kXsaveStBytes));
}

void WriteLegacy(const GuestRange& target, XsaveArea state, uint64_t components, bool mxcsr,
                 bool wide) {
  if ((components & kXstateX87) != 0) WriteX87(target, state, wide);
  if (mxcsr) target.Write(kXsaveMxcsr, state.Bytes(kXsaveMxcsr, kXsaveMxcsrBytes));
  if ((components & kXstateSse) != 0) {
    target.Write(kXsaveXmm, state.Bytes(kXsaveXmm, kXsaveXmmBytes));
  }
}

void WriteHeaderField(const GuestRange& target, uint64_t offset, uint64_t value) {
  target.Write(offset, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

}  // namespace

bool BeginXsave(CompletionContext& context, GuestRange& area, uint64_t& xcr0, uint64_t& rfbm) {
  if ((context.control().cr4 & x86::kCr4Osxsave) == 0) return context.RaiseUndefined();
  if ((context.control().cr0 & x86::kCr0Ts) != 0) return context.Raise(x86::kNoFpuVector);
  if (!area.CheckAlignment(kXsaveAlignment)) return false;
  if (!context.GetXcr0(xcr0)) return false;
  const auto& gpr = context.registers().gpr;
  rfbm = xcr0 & ((gpr[kRdx] << 32) | (gpr[kRax] & 0xffffffff));
  return true;
}

// XSAVEOPT may leave out what is initial or unmodified; we leave out nothing.
bool ExecuteXsave(CompletionContext& context, const Instruction& instruction) {
  GuestRange target(context, instruction);
  uint64_t xcr0 = 0, rfbm = 0;
  std::span<uint8_t> area;
  if (!BeginXsave(context, target, xcr0, rfbm) || !GetState(context, rfbm, area)) return false;
  XsaveArea state(area);

  const bool mxcsr = (rfbm & (kXstateSse | kXstateAvx)) != 0;
  const bool touched =
      TouchLegacy(target, rfbm, mxcsr) && ForEachExtended(rfbm, [&](unsigned bit) {
        const XsaveLayout::Component& component = XsaveLayout::OfHost().component(bit);
        return target.Touch(component.offset, component.size, MemoryAccess::kWrite);
      });
  if (!touched) return false;

  WriteLegacy(target, state, rfbm, mxcsr, instruction.wide);
  ForEachExtended(rfbm, [&](unsigned bit) {
    target.Write(XsaveLayout::OfHost().component(bit).offset, state.Component(bit));
    return true;
  });
  uint64_t old_bv = 0;
  target.Read(kXsaveHeader, {reinterpret_cast<uint8_t*>(&old_bv), sizeof old_bv});
  WriteHeaderField(target, kXsaveHeader, (old_bv & ~rfbm) | (InUse(state) & rfbm));
  return true;
}

bool ExecuteXsavec(CompletionContext& context, const Instruction& instruction) {
  if (!XsaveLayout::OfHost().has_xsavec()) return context.RaiseUndefined();
  GuestRange target(context, instruction);
  uint64_t xcr0 = 0, rfbm = 0;
  std::span<uint8_t> area;
  if (!BeginXsave(context, target, xcr0, rfbm) || !GetState(context, rfbm, area)) return false;
  XsaveArea state(area);

  const uint64_t saved = InUse(state) & rfbm;
  const bool mxcsr = (saved & kXstateSse) != 0;
  const bool touched =
      TouchLegacy(target, saved, mxcsr) && ForEachExtended(saved, [&](unsigned bit) {
        return target.Touch(CompactedOffset(rfbm, bit), XsaveLayout::OfHost().component(bit).size,
                            MemoryAccess::kWrite);
      });
  if (!touched) return false;

  WriteLegacy(target, state, saved, mxcsr, instruction.wide);
  ForEachExtended(saved, [&](unsigned bit) {
    target.Write(CompactedOffset(rfbm, bit), state.Component(bit));
    return true;
  });
  WriteHeaderField(target, kXsaveHeader, saved);
  WriteHeaderField(target, kXsaveHeader + sizeof(uint64_t), rfbm | kXcompCompacted);
  return true;
}

}  // namespace forklet
