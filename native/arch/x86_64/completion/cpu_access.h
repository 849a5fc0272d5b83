#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "base/result.h"

namespace forklet {

struct CpuRegisters {
  std::array<uint64_t, 16> gpr;  // By encoding: RAX RCX RDX RBX RSP RBP RSI RDI R8..R15
  uint64_t rip;
  uint64_t rflags;
};

// The general registers' places in `gpr`, as far as instructions imply them.
enum : uint8_t { kRax = 0, kRcx = 1, kRdx = 2, kRbx = 3, kRsp = 4, kRbp = 5 };

// What decides how memory is addressed.
struct CpuControl {
  uint64_t cr0;
  uint64_t cr3;
  uint64_t cr4;
  uint64_t efer;
  uint64_t fs_base;
  uint64_t gs_base;
  uint64_t gdt_base;
  uint64_t ldt_base;
  uint32_t gdt_limit;  // In bytes, minus one
  uint32_t ldt_limit;  // In bytes, minus one; of no meaning without has_ldt
  bool has_ldt;        // LDTR holds a usable segment
  bool code64;         // CS.L: not in compatibility mode
  uint8_t cpl;
};

// An exception that the guest takes before, or for a trap after, its next
// instruction.
struct GuestException {
  uint8_t vector;
  std::optional<uint32_t> error_code;
  uint64_t payload = 0;  // #PF: the new CR2. #DB: the bits to set in DR6
};

// The state of one stopped vCPU, one method per request to KVM. The completion
// asks only for what its instruction needs, and each thing at most once.
//
// Thread: the vCPU's.
class CpuAccess {
 public:
  virtual Result<CpuRegisters> GetRegisters() = 0;
  // Also ends the interrupt shadow of the instruction before, if KVM does not.
  virtual Status SetRegisters(const CpuRegisters& registers) = 0;
  virtual Result<CpuControl> GetControl() = 0;
  virtual Result<uint64_t> GetXcr0() = 0;
  virtual Result<uint64_t> GetMsr(uint32_t index) = 0;
  // The XSAVE area in standard format, KVM_GET_XSAVE or KVM_GET_XSAVE2, as a
  // buffer that may be modified. Lifetime: this object, until the next call.
  virtual Result<std::span<uint8_t>> GetXsave() = 0;
  // Takes the area that the last GetXsave() returned, as it is now.
  virtual Status SetXsave() = 0;
  // Called last: setting registers makes KVM drop pending exceptions.
  virtual Status Inject(const GuestException& exception) = 0;

 protected:
  ~CpuAccess() = default;
};

}  // namespace forklet
