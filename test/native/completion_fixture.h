// What tests of instruction completion share: a vCPU without KVM, a guest with
// page tables, and the host's own processor to compare with.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "arch/x86_64/completion/completion.h"
#include "arch/x86_64/completion/x86.h"
#include "base/mapping.h"
#include "memory/guest_memory.h"

namespace forklet::test {

// Page table flags.
inline constexpr uint64_t kPresent = 1;
inline constexpr uint64_t kWritable = 2;
inline constexpr uint64_t kUser = 4;
inline constexpr uint64_t kAccessed = 0x20;
inline constexpr uint64_t kDirty = 0x40;
inline constexpr uint64_t kLarge = 0x80;
inline constexpr uint64_t kNoExecute = uint64_t{1} << 63;

// The state of a vCPU in plain memory, which counts what is asked of it.
class FakeCpu final : public CpuAccess {
 public:
  FakeCpu();

  Result<CpuRegisters> GetRegisters() override { return registers; }
  Status SetRegisters(const CpuRegisters& value) override;
  Result<CpuControl> GetControl() override { return control; }
  Result<uint64_t> GetXcr0() override { return xcr0; }
  Result<uint64_t> GetMsr(uint32_t index) override;
  Result<std::span<uint8_t>> GetXsave() override;
  Status SetXsave() override;
  Status Inject(const GuestException& value) override;

  CpuRegisters registers = {};
  CpuControl control = {};
  uint64_t xcr0;
  uint64_t tsc = 0;
  uint64_t tsc_aux = 0;
  std::vector<uint8_t> xsave;  // What the guest has; standard format
  std::optional<GuestException> injected;
  bool fail = false;  // Everything that changes state fails

 private:
  std::vector<uint8_t> handed_out_;
};

// Guest memory with four-level page tables, all tables below 1 MiB.
class GuestSpace {
 public:
  GuestSpace();

  const GuestMemory& memory() const { return memory_; }
  GuestAddress root() const { return GuestAddress{0x1000}; }
  // A page of RAM that nothing else uses.
  GuestAddress NewPage();
  // Maps one page of 4 KiB. Flags apply to the leaf; upper levels allow all.
  void Map(uint64_t address, GuestAddress page, uint64_t flags);
  // Maps new pages to [address, address + size), which holds `bytes` then.
  void Place(uint64_t address, std::span<const uint8_t> bytes,
             uint64_t flags = kPresent | kWritable);
  // The entry for `address` at `level`, 1 being the leaf's; makes tables above.
  uint64_t& Entry(uint64_t address, int level = 1);
  std::vector<uint8_t> Read(uint64_t address, size_t size);

 private:
  GuestMemory memory_;
  uint64_t next_table_ = 0x2000;
  uint64_t next_page_ = 0x100000;
};

// A page-aligned range at the same place in this process and, once Publish()
// copied it there, in a guest: the same bytes run on both with the same
// registers.
class SharedRange {
 public:
  explicit SharedRange(size_t bytes);
  uint8_t* data() { return mapping_.data(); }
  uint64_t address() const { return reinterpret_cast<uint64_t>(mapping_.data()); }
  size_t size() const { return mapping_.size(); }
  void Publish(GuestSpace& space, uint64_t flags = kPresent | kWritable);

 private:
  Mapping mapping_;
};

// A guest and a vCPU in it, whose code is also the host's.
struct Bench {
  Bench();

  // Puts `code` where RIP points, in this process and in the guest.
  void SetCode(std::span<const uint8_t> code, size_t offset = 0);
  Completion Complete();
  // Runs the code on the host's processor with the vCPU's registers and, when
  // `with_fpu`, its XSAVE state. Updates `registers`, and `xsave` likewise.
  // False when the processor raised an exception.
  bool RunNatively(CpuRegisters& registers, std::vector<uint8_t>* xsave = nullptr);

  GuestSpace space;
  SharedRange code{2 * 4096};
  SharedRange data{8 * 4096};
  FakeCpu cpu;
};

// Random bytes that are a valid XSAVE state with all of XCR0 in use.
std::vector<uint8_t> RandomXsave(uint32_t seed);
uint64_t HostXcr0();

// Whether the processor under this process can be compared with. One that is
// emulated may not be: QEMU's XSAVE calls every component in use, keeps no last
// x87 opcode, and its XRSTOR takes any MXCSR. Says so when it is not.
bool HostXsaveIsExact();

}  // namespace forklet::test
