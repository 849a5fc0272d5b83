// The completion on real vCPUs: guests of a few instructions, at CPL 0. Where
// KVM needs no help with them, as on hardware, they must do the same.
#include <algorithm>
#include <cstring>

#include "arch/x86_64/boot.h"
#include "arch/x86_64/completion/xsave_area.h"
#include "arch/x86_64/host_profile.h"
#include "completion_fixture.h"
#include "doctest.h"
#include "kvm/kvm.h"
#include "kvm_fixture.h"
#include "vm/completion_access.h"

namespace forklet::test {
namespace {

using Code = std::vector<uint8_t>;

constexpr uint64_t kCodeAddress = 0x400000;
constexpr uint64_t kDataAddress = 0x500000;
constexpr uint64_t kStackTop = 0x601000;
constexpr uint64_t kHandlers = 0x700000;  // 64 bytes each, by vector
constexpr uint64_t kIdt = 0x701000;
constexpr uint64_t kGdt = 0x702000;
constexpr uint16_t kCodeSelector = 8;
constexpr uint16_t kDataSelector = 16;
constexpr uint64_t kTestXcr0 = 7;

// Runs into what is at kCodeAddress: XCR0 = 7, all registers as they were.
const Code kPrologue = {0x50, 0x51, 0x52, 0x31, 0xc9, 0x31, 0xd2, 0xb8, 7,
                        0,    0,    0,    0x0f, 0x01, 0xd1, 0x5a, 0x59, 0x58};

// Ends the guest with CR2 in RAX, the error code in RBX (of vectors that have
// one), and the vector in R15.
Code Handler(uint8_t vector) {
  Code code = {0x41, 0xbf, vector, 0, 0, 0,                // mov r15d, vector
               0x0f, 0x20, 0xd0};                          // mov rax, cr2
  if (vector == 13 || vector == 14) code.push_back(0x5b);  // pop rbx
  code.push_back(0xf4);                                    // hlt
  return code;
}

class KvmGuest {
 public:
  explicit KvmGuest(const Code& code) {
    Code before(4096);
    std::copy(kPrologue.begin(), kPrologue.end(),
              before.end() - static_cast<long>(kPrologue.size()));
    space_.Place(kCodeAddress - 4096, before);
    space_.Place(kCodeAddress, code);
    space_.Place(kStackTop - 4096, Code(4096));
    Code idt(4096), handlers(4096);
    for (uint8_t vector = 0; vector < 32; ++vector) {
      const Code handler = Handler(vector);
      std::memcpy(handlers.data() + vector * 64, handler.data(), handler.size());
      const uint64_t address = kHandlers + vector * 64u;
      const uint64_t gate = (address & 0xffff) | uint64_t{kCodeSelector} << 16 |
                            uint64_t{0x8e} << 40 | (address >> 16 & 0xffff) << 48;
      std::memcpy(idt.data() + vector * 16, &gate, sizeof gate);
    }
    space_.Place(kHandlers, handlers);
    space_.Place(kIdt, idt);
    const uint64_t gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    space_.Place(kGdt, {reinterpret_cast<const uint8_t*>(gdt), sizeof gdt});
  }

  GuestSpace& space() { return space_; }
  CpuRegisters registers = {};

  // Runs from kCodeAddress to a HLT. Returns how many instructions were
  // completed.
  int Run() {
    auto kvm = Kvm::Open(kKvmPath);
    REQUIRE(kvm.ok());
    auto vm = kvm.value().CreateVm();
    REQUIRE(vm.ok());
    const MemoryRegion& region = space_.memory().regions().front();
    REQUIRE(vm.value().SetMemoryRegion(0, region.start, region.size, region.host).ok());
    auto host = CachedHostProfile(kKvmPath, kvm.value());
    REQUIRE(host.ok());
    auto vcpu = vm.value().CreateVcpu(0, kvm.value().vcpu_mmap_size());
    REQUIRE(vcpu.ok());
    REQUIRE(vcpu.value().SetCpuid(host.value()->cpuid).ok());
    if (host.value()->xsetbv_unseen) REQUIRE(SetBootXcr0(vcpu.value(), kTestXcr0).ok());
    SetState(vcpu.value());

    const size_t size = host.value()->xsave_bytes;
    int completed = 0;
    for (;;) {
      REQUIRE(vcpu.value().Run() == 0);
      const kvm_run& run = vcpu.value().shared();
      if (run.exit_reason == KVM_EXIT_HLT) break;
      REQUIRE(run.exit_reason == KVM_EXIT_INTERNAL_ERROR);
      REQUIRE(run.internal.suberror == KVM_INTERNAL_ERROR_EMULATION);
      CompletionAccess access(vcpu.value(), size);
      auto result = CompleteInstruction(access, space_.memory(), {});
      REQUIRE_MESSAGE(result.ok(), (result.ok() ? "" : result.error().Message()));
      CAPTURE(result.value().description);
      REQUIRE(result.value().outcome != Completion::Outcome::kNotRecognised);
      REQUIRE(++completed < 100);
    }
    CompletionAccess access(vcpu.value(), size);
    auto after = access.GetRegisters();
    REQUIRE(after.ok());
    registers = after.value();
    return completed;
  }

 private:
  void SetState(const VcpuFd& vcpu) {
    auto sregs_result = vcpu.GetSregs();
    REQUIRE(sregs_result.ok());
    kvm_sregs sregs = sregs_result.value();
    sregs.cr0 = 0x80050033;
    sregs.cr3 = space_.root().value;
    sregs.cr4 = 0x20 | x86::kCr4Osfxsr | 0x400 | x86::kCr4Osxsave;
    sregs.efer = 0xd01;
    kvm_segment code = {};
    code.limit = 0xffffffff, code.selector = kCodeSelector, code.type = 11;
    code.present = code.s = code.l = code.g = 1;
    kvm_segment data = code;
    data.selector = kDataSelector, data.type = 3, data.l = 0, data.db = 1;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.gdt.base = kGdt, sregs.gdt.limit = 23;
    sregs.idt.base = kIdt, sregs.idt.limit = 32 * 16 - 1;
    REQUIRE(vcpu.SetSregs(sregs).ok());
    registers.rip = kCodeAddress - kPrologue.size();
    registers.rflags = 2;
    registers.gpr[kRsp] = kStackTop;
    CompletionAccess access(vcpu, kLegacyXsaveBytes);
    REQUIRE(access.SetRegisters(registers).ok());
  }

  GuestSpace space_;
};

}  // namespace

TEST_CASE("On a vCPU, XRSTOR and XSAVE carry x87, SSE and AVX state through KVM whole") {
  if (!HaveKvm()) return;
  KvmGuest guest({0x48, 0x0f, 0xae, 0x2b,  // xrstor64 [rbx]
                  0x48, 0x0f, 0xae, 0x21,  // xsave64 [rcx]
                  0x0f, 0xae, 0x1e,        // stmxcsr [rsi]
                  0xf4});
  std::vector<uint8_t> state = RandomXsave(41);
  XsaveArea(state).set_xstate_bv(kTestXcr0);
  std::vector<uint8_t> area(4096);
  // Into the memory layout of XSAVE: the fixture's is the same, with more
  // behind the header.
  std::copy_n(state.begin(), 2048, area.begin());
  guest.space().Place(kDataAddress, area);
  guest.space().Place(kDataAddress + 4096, Code(8192));
  guest.registers.gpr[kRbx] = kDataAddress;
  guest.registers.gpr[kRcx] = kDataAddress + 8192 - 128;  // Across two pages
  guest.registers.gpr[6] = kDataAddress + 4096;
  guest.registers.gpr[kRax] = kTestXcr0;

  guest.Run();

  std::vector<uint8_t> stored = guest.space().Read(kDataAddress + 8192 - 128, 2048);
  CHECK(XsaveArea(stored).xstate_bv() == kTestXcr0);
  const auto same = [&](uint64_t offset, uint64_t size) {
    return std::memcmp(stored.data() + offset, state.data() + offset, size) == 0;
  };
  CHECK(same(kXsaveX87, kXsaveX87Bytes));
  CHECK(same(kXsaveMxcsr, 4));
  CHECK(same(kXsaveSt, kXsaveStBytes));
  CHECK(same(kXsaveXmm, kXsaveXmmBytes));
  CHECK(same(XsaveLayout::OfHost().component(2).offset, XsaveLayout::OfHost().component(2).size));
  const std::vector<uint8_t> mxcsr = guest.space().Read(kDataAddress + 4096, 4);
  CHECK(std::memcmp(mxcsr.data(), state.data() + kXsaveMxcsr, 4) == 0);
}

TEST_CASE("On a vCPU, XRSTOR of initial state clears what was there") {
  if (!HaveKvm()) return;
  KvmGuest guest({0x48, 0x0f, 0xae, 0x2b,           // xrstor64 [rbx]
                  0x48, 0xc7, 0x83, 0,    2, 0, 0,  // mov qword [rbx+512], 0
                  0,    0,    0,    0,              //
                  0x48, 0x0f, 0xae, 0x2b,           // xrstor64 [rbx]
                  0x48, 0x0f, 0xae, 0x21,           // xsave64 [rcx]
                  0xf4});
  std::vector<uint8_t> state = RandomXsave(42);
  XsaveArea(state).set_xstate_bv(kTestXcr0);
  guest.space().Place(kDataAddress, state);
  guest.space().Place(kDataAddress + 4096, Code(4096));
  guest.registers.gpr[kRbx] = kDataAddress;
  guest.registers.gpr[kRcx] = kDataAddress + 4096;
  guest.registers.gpr[kRax] = kTestXcr0;

  guest.Run();

  std::vector<uint8_t> stored = guest.space().Read(kDataAddress + 4096, 4096);
  const auto all_zero = [&](uint64_t offset, uint64_t size) {
    return std::all_of(stored.begin() + static_cast<long>(offset),
                       stored.begin() + static_cast<long>(offset + size),
                       [](uint8_t byte) { return byte == 0; });
  };
  CHECK(all_zero(kXsaveSt, kXsaveStBytes + kXsaveXmmBytes));
  CHECK(
      all_zero(XsaveLayout::OfHost().component(2).offset, XsaveLayout::OfHost().component(2).size));
  // Standard format loads the MXCSR all the same.
  CHECK(XsaveArea(stored).mxcsr() == 0x1fa0);
}

TEST_CASE("On a vCPU, integer instructions do what the host's processor does") {
  if (!HaveKvm()) return;
  KvmGuest guest({0xf3, 0x48, 0x0f, 0xb8, 0xc3,                // popcnt rax, rbx
                  0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xf3,          // crc32 rsi, rbx
                  0xf0, 0x48, 0x0f, 0xc7, 0x0f,                // lock cmpxchg16b [rdi]
                  0x0f, 0x94, 0x47, 0x20,                      // sete [rdi+32]
                  0x9b,                                        // fwait
                  0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca, 0xf4});  // stac; clac; hlt
  guest.space().Place(kDataAddress, Code(64));
  guest.registers.gpr[kRbx] = 0x0123456789abcdef;
  guest.registers.gpr[kRcx] = 0xfedcba9876543210;
  guest.registers.gpr[7] = kDataAddress;

  guest.Run();

  uint64_t crc = 0;
  asm("crc32q %1, %0" : "+r"(crc) : "r"(uint64_t{0x0123456789abcdef}));
  CHECK(guest.registers.gpr[6] == crc);
  // 32 in RAX is not what memory holds: nothing is stored, RDX:RAX loaded.
  CHECK(guest.registers.gpr[kRax] == 0);
  CHECK(guest.space().Read(kDataAddress, 33) == Code(33));
  CHECK(guest.registers.gpr[15] == 0);
}

TEST_CASE("On a vCPU, INT3 ends in its handler with RIP behind it") {
  if (!HaveKvm()) return;
  KvmGuest guest({0xcc, 0xf4});
  guest.Run();
  CHECK(guest.registers.gpr[15] == 3);
  const std::vector<uint8_t> frame = guest.space().Read(guest.registers.gpr[kRsp], 8);
  uint64_t rip;
  std::memcpy(&rip, frame.data(), sizeof rip);
  CHECK(rip == kCodeAddress + 1);
}

TEST_CASE("On a vCPU, XRSTOR from an absent page raises #PF with CR2 and error code") {
  if (!HaveKvm()) return;
  KvmGuest guest({0x48, 0x0f, 0xae, 0x2b, 0xf4});
  guest.registers.gpr[kRbx] = 0x7f0000001000;
  guest.registers.gpr[kRax] = kTestXcr0;
  guest.Run();
  CHECK(guest.registers.gpr[15] == 14);
  // The header is looked at first.
  CHECK(guest.registers.gpr[kRax] - 0x7f0000001000 < 4096);
  CHECK(guest.registers.gpr[kRbx] == 0);
}

TEST_CASE("On a vCPU, XRSTOR of a bad header raises #GP") {
  if (!HaveKvm()) return;
  KvmGuest guest({0x48, 0x0f, 0xae, 0x2b, 0xf4});
  std::vector<uint8_t> state = RandomXsave(43);
  XsaveArea(state).set_xstate_bv(uint64_t{1} << 61);
  guest.space().Place(kDataAddress, state);
  guest.registers.gpr[kRbx] = kDataAddress;
  guest.registers.gpr[kRax] = kTestXcr0;
  guest.Run();
  CHECK(guest.registers.gpr[15] == 13);
  CHECK(guest.registers.gpr[kRbx] == 0);
}

TEST_CASE("On a vCPU, RDTSCP goes with RDTSC") {
  if (!HaveKvm()) return;
  KvmGuest guest({0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0xc6,
                  0x0f, 0x01, 0xf9, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89,
                  0xc7, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0xf4});
  guest.Run();
  const uint64_t first = guest.registers.gpr[6];
  const uint64_t second = guest.registers.gpr[7];
  const uint64_t third = guest.registers.gpr[kRax];
  CHECK(first < second);
  CHECK(second < third);
}

}  // namespace forklet::test
