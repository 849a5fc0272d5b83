// XRSTOR, in both formats, after the SDM, volume 1, chapter 13.
#include <algorithm>
#include <cstring>

#include "arch/x86_64/completion/operations.h"
#include "arch/x86_64/completion/x86.h"
#include "arch/x86_64/completion/xsave_area.h"

namespace forklet {
namespace {

struct Header {
  uint64_t xstate_bv;
  uint64_t xcomp_bv;
  uint64_t reserved[6];
};
static_assert(sizeof(Header) == kXsaveHeaderBytes);

bool IsValid(const Header& header, uint64_t xcr0) {
  const bool compacted = (header.xcomp_bv & kXcompCompacted) != 0;
  const uint64_t components = header.xcomp_bv & ~kXcompCompacted;
  if (!compacted) {
    // Standard format demands zeros up to byte 23 of the header only.
    return (header.xstate_bv & ~xcr0) == 0 && header.xcomp_bv == 0 && header.reserved[0] == 0;
  }
  return XsaveLayout::OfHost().has_xsavec() && (components & ~xcr0) == 0 &&
         (header.xstate_bv & ~components) == 0 &&
         std::all_of(std::begin(header.reserved), std::end(header.reserved),
                     [](uint64_t value) { return value == 0; });
}

}  // namespace

bool ExecuteXrstor(CompletionContext& context, const Instruction& instruction) {
  GuestRange source(context, instruction);
  uint64_t xcr0 = 0, rfbm = 0;
  if (!BeginXsave(context, source, xcr0, rfbm)) return false;

  Header header;
  if (!source.Touch(kXsaveHeader, sizeof header, MemoryAccess::kRead)) return false;
  // Read once: what is checked is what is used, whatever the guest does.
  source.Read(kXsaveHeader, {reinterpret_cast<uint8_t*>(&header), sizeof header});
  if (!IsValid(header, xcr0)) return context.RaiseProtection();
  const bool compacted = (header.xcomp_bv & kXcompCompacted) != 0;

  std::span<uint8_t> area;
  if (!context.GetXsave(area)) return false;
  XsaveArea state(area);
  if (!state.HasAll(xcr0)) {
    return context.RefuseBecause("XCR0 enables state that the host does not have");
  }

  const uint64_t loaded = rfbm & header.xstate_bv;
  // Standard format loads MXCSR whatever XSTATE_BV says of SSE.
  const bool mxcsr =
      compacted ? (loaded & kXstateSse) != 0 : (rfbm & (kXstateSse | kXstateAvx)) != 0;
  const auto offset_of = [&](unsigned bit) {
    return compacted ? CompactedOffset(header.xcomp_bv, bit)
                     : uint64_t{XsaveLayout::OfHost().component(bit).offset};
  };
  const auto touch = [&](uint64_t offset, uint64_t size) {
    return source.Touch(offset, size, MemoryAccess::kRead);
  };
  if ((loaded & kXstateX87) != 0 &&
      !(touch(kXsaveX87, kXsaveX87Bytes) && touch(kXsaveSt, kXsaveStBytes))) {
    return false;
  }
  if (mxcsr && !touch(kXsaveMxcsr, sizeof(uint32_t))) return false;
  if ((loaded & kXstateSse) != 0 && !touch(kXsaveXmm, kXsaveXmmBytes)) return false;
  if (!ForEachExtended(loaded, [&](unsigned bit) {
        return touch(offset_of(bit), XsaveLayout::OfHost().component(bit).size);
      })) {
    return false;
  }

  uint32_t new_mxcsr = kMxcsrInit;
  if (mxcsr) {
    source.Read(kXsaveMxcsr, {reinterpret_cast<uint8_t*>(&new_mxcsr), sizeof new_mxcsr});
    if ((new_mxcsr & ~state.mxcsr_mask()) != 0) return context.RaiseProtection();
  }

  // Nothing can fail any more but KVM itself.
  if ((loaded & kXstateX87) != 0) {
    const std::span<uint8_t> bytes = state.Bytes(kXsaveX87, kXsaveX87Bytes);
    source.Read(kXsaveX87, bytes);
    if (!instruction.wide) {
      std::memset(bytes.data() + kXsaveFip + 4, 0, 4);
      std::memset(bytes.data() + kXsaveFdp + 4, 0, 4);
    }
    source.Read(kXsaveSt, state.Bytes(kXsaveSt, kXsaveStBytes));
  }
  if ((loaded & kXstateSse) != 0) source.Read(kXsaveXmm, state.Bytes(kXsaveXmm, kXsaveXmmBytes));
  ForEachExtended(loaded, [&](unsigned bit) {
    source.Read(offset_of(bit), state.Component(bit));
    return true;
  });
  uint64_t in_use = (state.xstate_bv() & ~rfbm) | loaded;
  state.set_xstate_bv(in_use);
  if (mxcsr || (rfbm & kXstateSse) != 0) state.set_mxcsr(new_mxcsr);
  // KVM takes the MXCSR only together with state that uses it.
  if (state.mxcsr() != kMxcsrInit) in_use |= kXstateSse;
  // What was left out of XSTATE_BV is initial, for whoever reads the area.
  state.MaterialiseInit(xcr0);
  state.set_xstate_bv(in_use);
  return context.SetXsave();
}

}  // namespace forklet
