// Decoder, page walker and every completed instruction, with all that the guest
// decides: code, registers, page tables, memory and processor state.
#include "arch/x86_64/completion/completion.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "arch/x86_64/completion/decode.h"
#include "arch/x86_64/completion/x86.h"
#include "fuzz_input.h"

namespace {

using namespace forklet;

constexpr uint64_t kPages = 24;
constexpr uint64_t kTop = 0x1000;  // Page tables: four pages from here on
constexpr uint64_t kCode = 0x5000;
constexpr size_t kXsaveBytes = 4096;

class FuzzCpu final : public CpuAccess {
 public:
  Result<CpuRegisters> GetRegisters() override { return registers; }
  Status SetRegisters(const CpuRegisters& value) override {
    registers = value;
    return Ok();
  }
  Result<CpuControl> GetControl() override { return control; }
  Result<uint64_t> GetXcr0() override { return xcr0; }
  Result<uint64_t> GetMsr(uint32_t index) override { return uint64_t{index}; }
  Result<std::span<uint8_t>> GetXsave() override { return std::span<uint8_t>(xsave); }
  Status SetXsave() override { return Ok(); }
  Status Inject(const GuestException& value) override {
    if (value.vector > 31) std::abort();
    return Ok();
  }

  CpuRegisters registers = {};
  CpuControl control = {};
  uint64_t xcr0 = 7;
  std::array<uint8_t, kXsaveBytes> xsave = {};
};

const GuestMemory& Memory() {
  static const GuestMemory memory = [] {
    auto created = GuestMemory::Create(kPages * 4096);
    if (!created.ok()) std::abort();
    return std::move(created).value();
  }();
  return memory;
}

void Store(uint64_t address, uint64_t value) {
  if (!Memory().WriteObject(GuestAddress{address}, value)) std::abort();
}

// Maps the first pages to their own addresses, for all and everything.
void BuildPageTables() {
  std::memset(Memory().Range(GuestAddress{0}, kPages * 4096), 0, kPages * 4096);
  for (uint64_t level = 0; level < 3; ++level) {
    Store(kTop + level * 4096, (kTop + (level + 1) * 4096) | 7);
  }
  for (uint64_t page = 0; page < kPages; ++page) Store(kTop + 0x3000 + page * 8, page * 4096 | 7);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzzing::FuzzInput input(data, size);
  BuildPageTables();
  FuzzCpu cpu;
  const uint8_t options = input.Take<uint8_t>();
  cpu.registers.rip = kCode + input.Take<uint16_t>() % 8192;
  const auto code = input.TakeBytes(kMaxInstructionBytes);
  std::memcpy(Memory().Range(GuestAddress{cpu.registers.rip}, 16), code.data(), code.size());

  // What KVM says that it fetched: all of it, a part, or nothing.
  const size_t known = std::min<size_t>(code.size(), (options >> 4));

  cpu.control.cr0 = x86::kCr0Pg | x86::kCr0Wp;
  cpu.control.cr3 = kTop;
  cpu.control.cr4 = x86::kCr4Osfxsr | x86::kCr4Osxsave;
  cpu.control.efer = x86::kEferLma | x86::kEferNxe;
  cpu.control.code64 = true;
  if ((options & 1) != 0) {
    cpu.control.cr0 ^= input.Take<uint32_t>();
    cpu.control.cr4 ^= input.Take<uint32_t>();
    cpu.control.cr3 = input.Take<uint64_t>();
    cpu.control.efer ^= input.Take<uint16_t>();
    cpu.control.cpl = input.Take<uint8_t>() & 3;
    cpu.control.fs_base = input.Take<uint64_t>();
    cpu.control.gdt_base = input.Take<uint32_t>();
    cpu.control.gdt_limit = input.Take<uint16_t>();
    cpu.control.ldt_base = input.Take<uint64_t>();
    cpu.control.ldt_limit = input.Take<uint32_t>();
    cpu.control.has_ldt = true;
    cpu.xcr0 = input.Take<uint64_t>();
  }
  for (uint64_t& gpr : cpu.registers.gpr) {
    // Mostly addresses that exist.
    gpr = (options & 2) != 0 ? input.Take<uint64_t>() : input.Take<uint32_t>() % (kPages * 4096);
  }
  cpu.registers.rflags = 2 | input.Take<uint16_t>();
  const auto state = input.TakeBytes((options & 4) != 0 ? 1024 : 0);
  std::copy(state.begin(), state.end(), cpu.xsave.begin());
  while (!input.empty()) {
    const uint64_t address = input.Take<uint16_t>() % (kPages * 512) * 8;
    Store(address, input.Take<uint64_t>());
  }

  const uint64_t rip = cpu.registers.rip;
  auto result = CompleteInstruction(cpu, Memory(), code.first(known));
  if (!result.ok()) std::abort();
  const uint64_t moved = cpu.registers.rip - rip;
  if (moved > kMaxInstructionBytes) std::abort();
  if (result.value().outcome == Completion::Outcome::kNotRecognised && moved != 0) std::abort();
  return 0;
}
