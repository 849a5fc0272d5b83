#include "arch/x86_64/completion/xsave_area.h"

#include <cpuid.h>

#include <algorithm>
#include <cstring>

namespace forklet {
namespace {

constexpr unsigned kXsaveLeaf = 0xd;

template <class T>
T Get(std::span<const uint8_t> area, uint64_t offset) {
  T value;
  std::memcpy(&value, area.data() + offset, sizeof value);
  return value;
}

template <class T>
void Put(std::span<uint8_t> area, uint64_t offset, T value) {
  std::memcpy(area.data() + offset, &value, sizeof value);
}

}  // namespace

XsaveLayout::XsaveLayout() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(kXsaveLeaf, 1, &eax, &ebx, &ecx, &edx) == 0) return;
  has_xsaveopt_ = (eax & 1) != 0;
  has_xsavec_ = (eax & 2) != 0;
  has_xgetbv1_ = (eax & 4) != 0;
  for (unsigned bit = 2; bit < kComponents; ++bit) {
    __cpuid_count(kXsaveLeaf, bit, eax, ebx, ecx, edx);
    components_[bit] = {eax, ebx, (ecx & 2) != 0, (ecx & 1) != 0};
  }
}

const XsaveLayout& XsaveLayout::OfHost() {
  static const XsaveLayout layout;
  return layout;
}

uint64_t CompactedOffset(uint64_t xcomp_bv, unsigned bit) {
  uint64_t offset = kXsaveMinBytes;
  ForEachExtended(xcomp_bv & ~kXcompCompacted, [&](unsigned current) {
    const XsaveLayout::Component& component = XsaveLayout::OfHost().component(current);
    if (component.aligned) offset = (offset + kXsaveAlignment - 1) & ~(kXsaveAlignment - 1);
    if (current == bit) return false;
    offset += component.size;
    return true;
  });
  return offset;
}

uint64_t XsaveArea::xstate_bv() const { return Get<uint64_t>(area_, kXsaveHeader); }
void XsaveArea::set_xstate_bv(uint64_t value) { Put(area_, kXsaveHeader, value); }
uint32_t XsaveArea::mxcsr() const { return Get<uint32_t>(area_, kXsaveMxcsr); }
void XsaveArea::set_mxcsr(uint32_t value) { Put(area_, kXsaveMxcsr, value); }
uint16_t XsaveArea::fsw() const { return Get<uint16_t>(area_, 2); }

uint32_t XsaveArea::mxcsr_mask() const {
  // Processors that report no mask have one without DAZ.
  constexpr uint32_t kDefaultMask = 0xffbf;
  const auto mask = Get<uint32_t>(area_, kXsaveMxcsrMask);
  return mask == 0 ? kDefaultMask : mask;
}

bool XsaveArea::Has(unsigned bit) const {
  if (bit >= XsaveLayout::kComponents) return false;
  const XsaveLayout::Component& component = XsaveLayout::OfHost().component(bit);
  return component.size != 0 && !component.supervisor && component.offset >= kXsaveMinBytes &&
         component.offset <= area_.size() && component.size <= area_.size() - component.offset;
}

bool XsaveArea::HasAll(uint64_t mask) const {
  return ForEachExtended(mask, [this](unsigned bit) { return Has(bit); });
}

std::span<uint8_t> XsaveArea::Component(unsigned bit) {
  const XsaveLayout::Component& component = XsaveLayout::OfHost().component(bit);
  return area_.subspan(component.offset, component.size);
}

void XsaveArea::MaterialiseInit(uint64_t mask) {
  const uint64_t initial = mask & ~xstate_bv();
  const auto clear = [](std::span<uint8_t> bytes) { std::fill(bytes.begin(), bytes.end(), 0); };
  if ((initial & kXstateX87) != 0) {
    clear(Bytes(kXsaveX87, kXsaveX87Bytes));
    clear(Bytes(kXsaveSt, kXsaveStBytes));
    Put(area_, kXsaveX87, kFcwInit);
  }
  if ((initial & kXstateSse) != 0) clear(Bytes(kXsaveXmm, kXsaveXmmBytes));
  ForEachExtended(initial, [&](unsigned bit) {
    if (Has(bit)) clear(Component(bit));
    return true;
  });
}

uint32_t XsaveArea::Pkru() const {
  if (!Has(kXstatePkruBit) || ((xstate_bv() >> kXstatePkruBit) & 1) == 0) return 0;
  return Get<uint32_t>(area_, XsaveLayout::OfHost().component(kXstatePkruBit).offset);
}

}  // namespace forklet
