#pragma once

#include <cstdint>
#include <optional>

#include "arch/x86_64/completion/cpu_access.h"
#include "memory/guest_memory.h"

namespace forklet {

enum class MemoryAccess : uint8_t {
  kRead,
  kWrite,
  kFetch,
  kSystemRead,  // The processor's own, of a descriptor table: always supervisor
};

struct PageTranslation {
  enum class Status : uint8_t {
    kOk,
    kPageFault,
    kNotCanonical,
    kNotRam,  // Mapped, but to a GPA that is no RAM of the guest
    kRetry,   // The guest keeps changing its page tables meanwhile
  };
  Status status;
  uint8_t* host = nullptr;  // kOk: of the address. Lifetime: the GuestMemory
  uint32_t error_code = 0;  // kPageFault
  GuestAddress gpa = {};    // kNotRam
};

// Walks the guest's page tables (4 or 5 levels, large pages) as the processor
// does, with all checks that end in a page fault, and sets accessed and dirty
// bits.
//
// The tables are the guest's, and may change at any time: each entry is read
// once, a walk reads at most five, and tables outside RAM are a page fault, as
// they are with KVM.
class PageWalker {
 public:
  // `rflags` and `pkru` as the instruction finds them; `pkru` only matters with
  // CR4.PKE.
  PageWalker(const GuestMemory& memory, const CpuControl& control, uint64_t rflags, uint32_t pkru)
      : memory_(memory), control_(control), rflags_(rflags), pkru_(pkru) {}

  // Translates one address; what follows it in its page of 4 KiB is contiguous.
  PageTranslation Translate(uint64_t address, MemoryAccess access) const;

 private:
  struct Walk;

  // False when the guest changed an entry meanwhile.
  bool WalkOnce(uint64_t address, MemoryAccess access, PageTranslation& out) const;
  std::optional<uint32_t> PermissionFault(const Walk& walk, MemoryAccess access) const;
  bool SetAccessedAndDirty(const Walk& walk, MemoryAccess access) const;
  uint32_t AccessBits(MemoryAccess access) const;

  const GuestMemory& memory_;
  const CpuControl& control_;
  const uint64_t rflags_;
  const uint32_t pkru_;
};

}  // namespace forklet
