#include "arch/x86_64/completion/page_walk.h"

#include <array>

#include "arch/x86_64/completion/x86.h"
#include "arch/x86_64/layout.h"

namespace forklet {
namespace {

constexpr uint64_t kEntryPresent = uint64_t{1} << 0;
constexpr uint64_t kEntryWritable = uint64_t{1} << 1;
constexpr uint64_t kEntryUser = uint64_t{1} << 2;
constexpr uint64_t kEntryAccessed = uint64_t{1} << 5;
constexpr uint64_t kEntryDirty = uint64_t{1} << 6;
constexpr uint64_t kEntryLarge = uint64_t{1} << 7;
constexpr uint64_t kEntryNoExecute = uint64_t{1} << 63;
constexpr uint64_t kAddressMask = 0x000ffffffffff000;
constexpr int kKeyShift = 59;

constexpr int kPageShift = 12;
constexpr int kLevelBits = 9;
constexpr int kMaxLevels = 5;
// Levels with large pages: 2 (2 MiB) and 3 (1 GiB).
constexpr int kMaxLargeLevel = 3;
// A guest that changes an entry between our read and our update makes us walk
// again. This often, a vCPU of its own is working on it.
constexpr int kMaxAttempts = 16;

bool IsCanonical(uint64_t address, int bits) {
  const int unused = 64 - bits;
  return static_cast<uint64_t>(static_cast<int64_t>(address << unused) >> unused) == address;
}

bool IsUserMode(const CpuControl& control, MemoryAccess access) {
  return control.cpl == 3 && access != MemoryAccess::kSystemRead;
}

}  // namespace

// One walk that reached a leaf.
struct PageWalker::Walk {
  struct Step {
    uint64_t* host;  // Lifetime: the GuestMemory
    uint64_t value;  // As it was read
  };
  std::array<Step, kMaxLevels> steps;
  int count = 0;  // The last one is the leaf
  bool writable = true;
  bool user = true;
  bool no_execute = false;

  uint64_t leaf() const { return steps[static_cast<size_t>(count - 1)].value; }
};

uint32_t PageWalker::AccessBits(MemoryAccess access) const {
  uint32_t bits = IsUserMode(control_, access) ? x86::kFaultUser : 0;
  if (access == MemoryAccess::kWrite) bits |= x86::kFaultWrite;
  if (access == MemoryAccess::kFetch &&
      ((control_.efer & x86::kEferNxe) != 0 || (control_.cr4 & x86::kCr4Smep) != 0)) {
    bits |= x86::kFaultFetch;
  }
  return bits;
}

PageTranslation PageWalker::Translate(uint64_t address, MemoryAccess access) const {
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    PageTranslation translation{PageTranslation::Status::kOk};
    if (WalkOnce(address, access, translation)) return translation;
  }
  return {PageTranslation::Status::kRetry};
}

bool PageWalker::WalkOnce(uint64_t address, MemoryAccess access, PageTranslation& out) const {
  const int levels = (control_.cr4 & x86::kCr4La57) != 0 ? kMaxLevels : kMaxLevels - 1;
  if (!IsCanonical(address, kPageShift + levels * kLevelBits)) {
    out.status = PageTranslation::Status::kNotCanonical;
    return true;
  }
  const auto page_fault = [&](uint32_t extra) {
    out.status = PageTranslation::Status::kPageFault;
    out.error_code = AccessBits(access) | extra;
    return true;
  };

  Walk walk;
  GuestAddress table{control_.cr3 & kAddressMask};
  for (int level = levels;; --level) {
    const int shift = kPageShift + (level - 1) * kLevelBits;
    const uint64_t index = (address >> shift) & ((1u << kLevelBits) - 1);
    // Bounds: Range has checked 8 bytes; table entries are aligned.
    auto* host = reinterpret_cast<uint64_t*>(
        memory_.Range(table + index * sizeof(uint64_t), sizeof(uint64_t)));
    if (host == nullptr) return page_fault(0);
    const uint64_t entry = __atomic_load_n(host, __ATOMIC_ACQUIRE);
    if ((entry & kEntryPresent) == 0) return page_fault(0);

    const bool large = (entry & kEntryLarge) != 0 && level > 1;
    uint64_t reserved = (control_.efer & x86::kEferNxe) != 0 ? 0 : kEntryNoExecute;
    if (large) {
      // Between the page's address and the PAT bit.
      reserved |=
          level > kMaxLargeLevel ? kEntryLarge : ((uint64_t{1} << shift) - 1) & ~uint64_t{0x1fff};
    }
    if ((entry & reserved) != 0) return page_fault(x86::kFaultPresent | x86::kFaultReserved);

    walk.steps[static_cast<size_t>(walk.count++)] = {host, entry};
    walk.writable = walk.writable && (entry & kEntryWritable) != 0;
    walk.user = walk.user && (entry & kEntryUser) != 0;
    walk.no_execute = walk.no_execute || (entry & kEntryNoExecute) != 0;
    table = GuestAddress{entry & kAddressMask};
    if (level == 1 || large) {
      const uint64_t offset_mask = (uint64_t{1} << shift) - 1;
      out.gpa = GuestAddress{(entry & kAddressMask & ~offset_mask) | (address & offset_mask)};
      break;
    }
  }

  if (const auto denied = PermissionFault(walk, access)) {
    return page_fault(x86::kFaultPresent | *denied);
  }
  // Regions are page-aligned: the rest of the page is as valid as this byte.
  const uint64_t in_page = out.gpa.value % layout::kPageSize;
  out.host = memory_.Range(out.gpa, layout::kPageSize - in_page);
  if (out.host == nullptr) {
    out.status = PageTranslation::Status::kNotRam;
    return true;
  }
  return SetAccessedAndDirty(walk, access);
}

std::optional<uint32_t> PageWalker::PermissionFault(const Walk& walk, MemoryAccess access) const {
  const bool user_mode = IsUserMode(control_, access);
  const bool write = access == MemoryAccess::kWrite;
  if (user_mode && !walk.user) return 0;
  if (write && !walk.writable && (user_mode || (control_.cr0 & x86::kCr0Wp) != 0)) return 0;
  if (access == MemoryAccess::kFetch) {
    if (walk.no_execute) return 0;
    if (!user_mode && walk.user && (control_.cr4 & x86::kCr4Smep) != 0) return 0;
    return std::nullopt;
  }
  if (!walk.user) return std::nullopt;
  if (!user_mode && (control_.cr4 & x86::kCr4Smap) != 0 &&
      ((rflags_ & x86::kFlagAc) == 0 || access == MemoryAccess::kSystemRead)) {
    return 0;
  }
  if ((control_.cr4 & x86::kCr4Pke) != 0) {
    const uint32_t rights = pkru_ >> (2 * ((walk.leaf() >> kKeyShift) & 0xf));
    const bool no_access = (rights & 1) != 0;
    const bool no_write = (rights & 2) != 0;
    if (no_access || (no_write && write && (user_mode || (control_.cr0 & x86::kCr0Wp) != 0))) {
      return x86::kFaultKey;
    }
  }
  return std::nullopt;
}

// Compare-and-swap, as the processor does: an entry that the guest has replaced
// meanwhile must not get a bit that belonged to the old one.
bool PageWalker::SetAccessedAndDirty(const Walk& walk, MemoryAccess access) const {
  for (int i = 0; i < walk.count; ++i) {
    const Walk::Step& step = walk.steps[static_cast<size_t>(i)];
    uint64_t bits = kEntryAccessed;
    if (i == walk.count - 1 && access == MemoryAccess::kWrite) bits |= kEntryDirty;
    if ((step.value & bits) == bits) continue;
    uint64_t expected = step.value;
    if (!__atomic_compare_exchange_n(step.host, &expected, step.value | bits, false,
                                     __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
      return false;
    }
  }
  return true;
}

}  // namespace forklet
