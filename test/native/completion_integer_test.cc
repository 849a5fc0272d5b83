#include <cstring>
#include <random>

#include "completion_fixture.h"
#include "doctest.h"

namespace forklet::test {
namespace {

using Outcome = Completion::Outcome;
using Code = std::vector<uint8_t>;

constexpr uint64_t kAllFlags =
    x86::kFlagOf | x86::kFlagSf | x86::kFlagZf | x86::kFlagAf | x86::kFlagCf | x86::kFlagPf;

// Registers full of random values, RBX and RSI pointing into the data.
void Randomise(Bench& bench, std::mt19937_64& random) {
  for (uint64_t& value : bench.cpu.registers.gpr) value = random();
  bench.cpu.registers.rflags = 2 | (random() & kAllFlags);
  for (size_t i = 0; i < bench.data.size(); i += 8) {
    const uint64_t value = random();
    std::memcpy(bench.data.data() + i, &value, sizeof value);
  }
  bench.cpu.registers.gpr[kRbx] = bench.data.address() + 256;
  bench.cpu.registers.gpr[6] = 3;  // RSI
  bench.data.Publish(bench.space);
}

// Completes the code, runs it on the host's processor, and compares.
void Compare(Bench& bench, const Code& code) {
  bench.SetCode(code);
  CpuRegisters native = bench.cpu.registers;
  const Completion completion = bench.Complete();
  REQUIRE(bench.RunNatively(native));

  CHECK(completion.outcome == Outcome::kCompleted);
  CHECK(bench.cpu.registers.gpr == native.gpr);
  CHECK((bench.cpu.registers.rflags & kAllFlags) == (native.rflags & kAllFlags));
  CHECK(bench.cpu.registers.rip == bench.code.address() + code.size());
  const std::vector<uint8_t> data = bench.space.Read(bench.data.address(), 4096);
  CHECK(std::memcmp(data.data(), bench.data.data(), data.size()) == 0);
}

struct Form {
  const char* name;
  Code code;
};

}  // namespace

TEST_CASE("POPCNT and CRC32 do what the host's processor does, in all operand forms") {
  const Form forms[] = {
      {"popcnt eax, ecx", {0xf3, 0x0f, 0xb8, 0xc1}},
      {"popcnt ax, cx", {0x66, 0xf3, 0x0f, 0xb8, 0xc1}},
      {"popcnt rax, rcx", {0xf3, 0x48, 0x0f, 0xb8, 0xc1}},
      {"popcnt r9, r15", {0xf3, 0x4d, 0x0f, 0xb8, 0xcf}},
      {"popcnt r9, r15, 66 ignored", {0x66, 0xf3, 0x4d, 0x0f, 0xb8, 0xcf}},
      {"popcnt eax, [rbx]", {0xf3, 0x0f, 0xb8, 0x03}},
      {"popcnt rdx, [rbx+rsi*8-0x10]", {0xf3, 0x48, 0x0f, 0xb8, 0x54, 0xf3, 0xf0}},
      {"popcnt rdx, [rbx+rsi+0x110]", {0xf3, 0x48, 0x0f, 0xb8, 0x94, 0x33, 0x10, 1, 0, 0}},
      {"popcnt edx, [rip-4]", {0xf3, 0x0f, 0xb8, 0x15, 0xfc, 0xff, 0xff, 0xff}},
      {"segment prefixes without effect", {0x2e, 0x36, 0x26, 0xf3, 0x3e, 0x0f, 0xb8, 0x03}},
      {"crc32 eax, cl", {0xf2, 0x0f, 0x38, 0xf0, 0xc1}},
      {"crc32 eax, ch", {0xf2, 0x0f, 0x38, 0xf0, 0xc5}},
      {"crc32 eax, bpl", {0xf2, 0x40, 0x0f, 0x38, 0xf0, 0xc5}},
      {"crc32 eax, r13b", {0xf2, 0x41, 0x0f, 0x38, 0xf0, 0xc5}},
      {"crc32 eax, cx", {0x66, 0xf2, 0x0f, 0x38, 0xf1, 0xc1}},
      {"crc32 eax, ecx", {0xf2, 0x0f, 0x38, 0xf1, 0xc1}},
      {"crc32 rax, rcx", {0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1}},
      {"crc32 rax, cl", {0xf2, 0x48, 0x0f, 0x38, 0xf0, 0xc1}},
      {"crc32 r10, [rbx]", {0xf2, 0x4c, 0x0f, 0x38, 0xf1, 0x13}},
      {"crc32 r10d, byte [rbx+1]", {0xf2, 0x44, 0x0f, 0x38, 0xf0, 0x53, 0x01}},
  };
  std::mt19937_64 random(7);
  Bench bench;
  for (const Form& form : forms) {
    CAPTURE(form.name);
    for (int i = 0; i < 20; ++i) {
      Randomise(bench, random);
      Compare(bench, form.code);
    }
  }
}

// Stated rather than compared: QEMU's emulation, where the tests run as well,
// takes such a REX for the instruction's.
TEST_CASE("A REX before another prefix is ignored") {
  Bench bench;
  bench.SetCode(Code{0x48, 0xf3, 0x0f, 0xb8, 0xc1});  // popcnt eax, ecx
  bench.cpu.registers.gpr[kRcx] = 0xffffffff'00000007;

  CHECK(bench.Complete().outcome == Outcome::kCompleted);

  CHECK(bench.cpu.registers.gpr[kRax] == 3);
}

TEST_CASE("POPCNT of zero sets ZF alone") {
  Bench bench;
  bench.SetCode(Code{0xf3, 0x48, 0x0f, 0xb8, 0xc1});
  bench.cpu.registers.gpr[kRcx] = 0;
  bench.cpu.registers.rflags = 2 | kAllFlags;

  CHECK(bench.Complete().outcome == Outcome::kCompleted);

  CHECK(bench.cpu.registers.gpr[kRax] == 0);
  CHECK((bench.cpu.registers.rflags & kAllFlags) == x86::kFlagZf);
}

TEST_CASE("An operand that crosses into another page is read from both") {
  std::mt19937_64 random(8);
  Bench bench;
  Randomise(bench, random);
  bench.cpu.registers.gpr[kRbx] = bench.data.address() + 4093;
  Compare(bench, {0xf3, 0x48, 0x0f, 0xb8, 0x03});
}

TEST_CASE("CMPXCHG16B does what the host's processor does") {
  const Form forms[] = {
      {"cmpxchg16b [rsi]", {0x48, 0x0f, 0xc7, 0x0e}},
      {"lock cmpxchg16b [rsi]", {0xf0, 0x48, 0x0f, 0xc7, 0x0e}},
      {"lock cmpxchg16b [rsi+0x20]", {0xf0, 0x48, 0x0f, 0xc7, 0x4e, 0x20}},
  };
  std::mt19937_64 random(9);
  Bench bench;
  for (const Form& form : forms) {
    CAPTURE(form.name);
    for (int i = 0; i < 20; ++i) {
      Randomise(bench, random);
      auto& gpr = bench.cpu.registers.gpr;
      gpr[6] = bench.data.address() + 64;
      // Half of them find what they compare with.
      if (i % 2 == 0) {
        const size_t offset = form.code.size() == 6 ? 96 : 64;
        std::memcpy(&gpr[kRax], bench.data.data() + offset, 8);
        std::memcpy(&gpr[kRdx], bench.data.data() + offset + 8, 8);
      }
      Compare(bench, form.code);
    }
  }
}

TEST_CASE("CMPXCHG16B raises #GP when it is misaligned, and changes nothing") {
  Bench bench;
  bench.SetCode(Code{0xf0, 0x48, 0x0f, 0xc7, 0x0e});
  bench.cpu.registers.gpr[6] = bench.data.address() + 8;
  const CpuRegisters before = bench.cpu.registers;

  CHECK(bench.Complete().outcome == Outcome::kInjected);

  CHECK(bench.cpu.injected->vector == 13);
  CHECK(bench.cpu.injected->error_code == 0u);
  CHECK(bench.cpu.registers.rip == before.rip);
  CpuRegisters native = before;
  CHECK_FALSE(bench.RunNatively(native));
}

TEST_CASE("CMPXCHG16B on read-only memory faults even when the comparison fails") {
  Bench bench;
  bench.data.Publish(bench.space, kPresent);
  bench.SetCode(Code{0xf0, 0x48, 0x0f, 0xc7, 0x0e});
  bench.cpu.registers.gpr[6] = bench.data.address();
  bench.cpu.registers.gpr[kRax] = 1;

  CHECK(bench.Complete().outcome == Outcome::kInjected);

  CHECK(bench.cpu.injected->vector == 14);
  CHECK(bench.cpu.injected->error_code == 3u);
  CHECK(bench.cpu.injected->payload == bench.data.address());
}

TEST_CASE("FS and GS bases, 32-bit addresses and stack-relative operands are honoured") {
  const std::vector<uint8_t> seven = {0x7f, 0, 0, 0, 0, 0, 0, 0};
  Bench bench;
  bench.space.Place(0x400000, seven);
  bench.cpu.control.fs_base = 0x3ff000;
  bench.cpu.control.gs_base = 0x3fe000;
  bench.cpu.registers.gpr[kRbx] = 0x1000;
  bench.cpu.registers.gpr[kRcx] = 0xffffffff00400000;
  bench.cpu.registers.gpr[kRsp] = 0x3ffff8;
  const Form forms[] = {
      {"popcnt eax, fs:[rbx]", {0x64, 0xf3, 0x0f, 0xb8, 0x03}},
      {"popcnt eax, gs:[rbx+0x1000]", {0x65, 0xf3, 0x0f, 0xb8, 0x83, 0, 0x10, 0, 0}},
      {"popcnt eax, gs:[0x2000]", {0x65, 0xf3, 0x0f, 0xb8, 0x04, 0x25, 0, 0x20, 0, 0}},
      {"popcnt eax, [ecx]", {0x67, 0xf3, 0x0f, 0xb8, 0x01}},
      {"popcnt eax, [rsp+8]", {0xf3, 0x0f, 0xb8, 0x44, 0x24, 0x08}},
  };
  for (const Form& form : forms) {
    CAPTURE(form.name);
    bench.SetCode(form.code);
    bench.cpu.registers.gpr[kRax] = 0;
    CHECK(bench.Complete().outcome == Outcome::kCompleted);
    CHECK(bench.cpu.registers.gpr[kRax] == 7);
  }
}

}  // namespace forklet::test
