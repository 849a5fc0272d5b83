#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace forklet {

// Offsets in an XSAVE area, standard and compacted format alike.
inline constexpr uint64_t kXsaveX87 = 0;  // FCW to FDP: 24 bytes
inline constexpr uint64_t kXsaveX87Bytes = 24;
inline constexpr uint64_t kXsaveFip = 8;     // 64-bit instruction pointer
inline constexpr uint64_t kXsaveFdp = 16;    // 64-bit data pointer
inline constexpr uint64_t kXsaveMxcsr = 24;  // MXCSR and its mask: 8 bytes
inline constexpr uint64_t kXsaveMxcsrMask = 28;
inline constexpr uint64_t kXsaveMxcsrBytes = 8;
inline constexpr uint64_t kXsaveSt = 32;  // ST0 to ST7
inline constexpr uint64_t kXsaveStBytes = 128;
inline constexpr uint64_t kXsaveXmm = 160;  // XMM0 to XMM15
inline constexpr uint64_t kXsaveXmmBytes = 256;
inline constexpr uint64_t kXsaveHeader = 512;
inline constexpr uint64_t kXsaveHeaderBytes = 64;
inline constexpr uint64_t kXsaveMinBytes = 576;  // Legacy region and header
inline constexpr uint64_t kXsaveAlignment = 64;

// State components.
inline constexpr uint64_t kXstateX87 = 1u << 0;
inline constexpr uint64_t kXstateSse = 1u << 1;
inline constexpr uint64_t kXstateAvx = 1u << 2;
inline constexpr unsigned kXstatePkruBit = 9;

inline constexpr uint64_t kXcompCompacted = uint64_t{1} << 63;
inline constexpr uint32_t kMxcsrInit = 0x1f80;
inline constexpr uint16_t kFcwInit = 0x037f;

// Where the processor keeps the components beyond x87 and SSE, CPUID leaf 0xd.
// It is the host's: KVM shows guests the same offsets, and uses them in
// KVM_GET_XSAVE.
class XsaveLayout {
 public:
  struct Component {
    uint32_t size = 0;        // In bytes; 0: there is none
    uint32_t offset = 0;      // In standard format
    bool aligned = false;     // To 64 bytes, in compacted format
    bool supervisor = false;  // Not reached by XSAVE and XRSTOR
  };
  static constexpr unsigned kComponents = 63;

  static const XsaveLayout& OfHost();

  const Component& component(unsigned bit) const { return components_[bit]; }
  bool has_xgetbv1() const { return has_xgetbv1_; }
  bool has_xsavec() const { return has_xsavec_; }
  bool has_xsaveopt() const { return has_xsaveopt_; }

 private:
  XsaveLayout();
  std::array<Component, kComponents> components_ = {};
  bool has_xgetbv1_ = false;
  bool has_xsavec_ = false;
  bool has_xsaveopt_ = false;
};

// Calls `visit(bit)` for each component of `mask` beyond x87 and SSE, in order,
// until one returns false; false then.
template <class Visit>
bool ForEachExtended(uint64_t mask, Visit visit) {
  for (uint64_t rest = mask & ~(kXstateX87 | kXstateSse); rest != 0; rest &= rest - 1) {
    if (!visit(static_cast<unsigned>(__builtin_ctzll(rest)))) return false;
  }
  return true;
}

// Where compacted format with the components of `xcomp_bv` keeps one of them.
uint64_t CompactedOffset(uint64_t xcomp_bv, unsigned bit);

// A view of a vCPU's XSAVE area in standard format. Lifetime: the buffer's.
class XsaveArea {
 public:
  // `area` has at least kXsaveMinBytes.
  explicit XsaveArea(std::span<uint8_t> area) : area_(area) {}

  uint64_t xstate_bv() const;
  void set_xstate_bv(uint64_t value);
  uint32_t mxcsr() const;
  void set_mxcsr(uint32_t value);
  // The bits that MXCSR may have.
  uint32_t mxcsr_mask() const;
  uint16_t fsw() const;
  std::span<uint8_t> Bytes(uint64_t offset, uint64_t size) { return area_.subspan(offset, size); }

  // Whether the host's layout and this area have the component, or all of
  // several.
  bool Has(unsigned bit) const;
  bool HasAll(uint64_t mask) const;
  // Of a component that it has, from bit 2 on.
  std::span<uint8_t> Component(unsigned bit);

  // Writes out what XSTATE_BV says implicitly: every component that it leaves
  // out of `mask` gets its initial values.
  void MaterialiseInit(uint64_t mask);

  uint32_t Pkru() const;

 private:
  std::span<uint8_t> area_;
};

}  // namespace forklet
