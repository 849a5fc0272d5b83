#include "arch/x86_64/completion/completion.h"

#include <cstring>

#include "completion_fixture.h"
#include "doctest.h"

namespace forklet::test {
namespace {

using Outcome = Completion::Outcome;
using Code = std::vector<uint8_t>;

// Completes `code` and expects the exception.
void ExpectException(Bench& bench, const Code& code, uint8_t vector,
                     std::optional<uint32_t> error_code) {
  bench.SetCode(code);
  const CpuRegisters before = bench.cpu.registers;
  bench.cpu.injected.reset();

  CHECK(bench.Complete().outcome == Outcome::kInjected);

  REQUIRE(bench.cpu.injected.has_value());
  CHECK(int{bench.cpu.injected->vector} == int{vector});
  CHECK(bench.cpu.injected->error_code == error_code);
  CHECK(bench.cpu.registers.rip == before.rip);
  CHECK(bench.cpu.registers.gpr == before.gpr);
}

void ExpectCompleted(Bench& bench, const Code& code) {
  bench.SetCode(code);
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  CHECK(bench.cpu.registers.rip == bench.code.address() + code.size());
}

}  // namespace

TEST_CASE("INT3 becomes a breakpoint trap with RIP behind it") {
  Bench bench;
  bench.SetCode(Code{0xcc});

  CHECK(bench.Complete().outcome == Outcome::kInjected);

  CHECK(bench.cpu.injected->vector == 3);
  CHECK_FALSE(bench.cpu.injected->error_code.has_value());
  CHECK(bench.cpu.registers.rip == bench.code.address() + 1);
}

TEST_CASE("UD0, UD1 and a LOCK that is not allowed raise #UD") {
  Bench bench;
  ExpectException(bench, {0x0f, 0xb9, 0xc0}, 6, std::nullopt);
  ExpectException(bench, {0x67, 0x0f, 0xb9, 0x40, 0x10}, 6, std::nullopt);
  ExpectException(bench, {0x0f, 0xff, 0xc0}, 6, std::nullopt);
  ExpectException(bench, {0xf0, 0xcc}, 6, std::nullopt);
  ExpectException(bench, {0xf0, 0xf3, 0x0f, 0xb8, 0xc1}, 6, std::nullopt);
  ExpectException(bench, {0xf0, 0x48, 0x0f, 0xae, 0x23}, 6, std::nullopt);
}

TEST_CASE("A retired instruction clears RF, and raises #DB when the guest single-steps") {
  Bench bench;
  bench.cpu.registers.rflags |= x86::kFlagRf;
  ExpectCompleted(bench, {0x9b});
  CHECK((bench.cpu.registers.rflags & x86::kFlagRf) == 0);

  bench.cpu.registers.rflags |= x86::kFlagTf;
  bench.SetCode(Code{0x9b});
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 1);
  CHECK(bench.cpu.injected->payload == x86::kDr6SingleStep);
  CHECK(bench.cpu.registers.rip == bench.code.address() + 1);
}

TEST_CASE("FWAIT raises #NM with TS and MP, and #MF with a pending exception") {
  Bench bench;
  ExpectCompleted(bench, {0x9b});
  bench.cpu.xsave[2] = 0x80;  // FSW.ES
  ExpectException(bench, {0x9b}, 16, std::nullopt);
  bench.cpu.xsave[512] = 0;  // Its bits mean nothing while x87 is initial
  ExpectCompleted(bench, {0x9b});
  bench.cpu.control.cr0 |= x86::kCr0Ts;
  ExpectException(bench, {0x9b}, 7, std::nullopt);
  bench.cpu.control.cr0 &= ~x86::kCr0Mp;
  ExpectCompleted(bench, {0x9b});
}

TEST_CASE("CLAC and STAC change AC, for the kernel alone") {
  Bench bench;
  ExpectCompleted(bench, {0x0f, 0x01, 0xcb});
  CHECK((bench.cpu.registers.rflags & x86::kFlagAc) != 0);
  ExpectCompleted(bench, {0x0f, 0x01, 0xca});
  CHECK((bench.cpu.registers.rflags & x86::kFlagAc) == 0);

  bench.code.Publish(bench.space, kPresent | kWritable | kUser);
  bench.cpu.control.cpl = 3;
  bench.SetCode(Code{0x0f, 0x01, 0xcb});
  bench.code.Publish(bench.space, kPresent | kWritable | kUser);
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 6);
}

TEST_CASE("RDTSCP reads the guest's TSC and TSC_AUX, and clears the upper halves") {
  Bench bench;
  bench.cpu.tsc = 0x123456789abcdef0;
  bench.cpu.tsc_aux = 5;
  bench.cpu.registers.gpr[kRax] = bench.cpu.registers.gpr[kRcx] = ~uint64_t{0};
  ExpectCompleted(bench, {0x0f, 0x01, 0xf9});
  CHECK(bench.cpu.registers.gpr[kRax] == 0x9abcdef0);
  CHECK(bench.cpu.registers.gpr[kRdx] == 0x12345678);
  CHECK(bench.cpu.registers.gpr[kRcx] == 5);
}

TEST_CASE("VERR and VERW judge a segment as the processor does") {
  constexpr uint64_t kGdt = 0x500000;
  const uint64_t gdt[] = {
      0x00cf92000000ffff,  // 0x00: never looked at, the null selector
      0x00cf92000000ffff,  // 0x08: writable data, DPL 0
      0x00cf90000000ffff,  // 0x10: read-only data, DPL 0
      0x00af9a000000ffff,  // 0x18: readable code, DPL 0
      0x00af98000000ffff,  // 0x20: code that can't be read
      0x0000890000000067,  // 0x28: a TSS
      0x00cff2000000ffff,  // 0x30: writable data, DPL 3
  };
  Bench bench;
  bench.space.Place(kGdt, {reinterpret_cast<const uint8_t*>(gdt), sizeof gdt});
  bench.cpu.control.gdt_base = kGdt;
  bench.cpu.control.gdt_limit = sizeof gdt - 1;
  struct Case {
    uint16_t selector;
    bool readable, writable;
  };
  const Case cases[] = {
      {0x00, false, false}, {0x03, false, false}, {0x08, true, true},   {0x10, true, false},
      {0x18, true, false},  {0x20, false, false}, {0x28, false, false}, {0x30, true, true},
      {0x33, true, true},   {0x0b, false, false}, {0x38, false, false}, {0x0c, false, false},
  };
  for (const Case& test : cases) {
    CAPTURE(test.selector);
    bench.cpu.registers.gpr[kRax] = test.selector;
    ExpectCompleted(bench, {0x0f, 0x00, 0xe0});
    CHECK(((bench.cpu.registers.rflags & x86::kFlagZf) != 0) == test.readable);
    ExpectCompleted(bench, {0x0f, 0x00, 0xe8});
    CHECK(((bench.cpu.registers.rflags & x86::kFlagZf) != 0) == test.writable);
  }
  // The form that the kernel uses: a selector in memory.
  bench.data.data()[0] = 0x08;
  bench.data.Publish(bench.space);
  bench.cpu.registers.gpr[kRbx] = bench.data.address();
  ExpectCompleted(bench, {0x0f, 0x00, 0x2b});
  CHECK((bench.cpu.registers.rflags & x86::kFlagZf) != 0);
}

TEST_CASE("An instruction that is not completed is described, and nothing changes") {
  Bench bench;
  bench.SetCode(Code{0xc5, 0xfd, 0x6f, 0x03});
  const CpuRegisters before = bench.cpu.registers;

  const Completion completion = bench.Complete();

  CHECK(completion.outcome == Outcome::kNotRecognised);
  CHECK(completion.description.substr(0, 11) == "c5 fd 6f 03");
  CHECK(bench.cpu.registers.gpr == before.gpr);
  CHECK(bench.cpu.registers.rip == before.rip);
  CHECK_FALSE(bench.cpu.injected.has_value());
}

TEST_CASE("Code outside 64-bit mode is not recognised") {
  Bench bench;
  bench.SetCode(Code{0xcc});
  bench.cpu.control.code64 = false;
  CHECK(bench.Complete().outcome == Outcome::kNotRecognised);
}

TEST_CASE("An operand outside RAM is not recognised, since a device may be there") {
  Bench bench;
  bench.space.Map(0x600000, GuestAddress{0xd0000000}, kPresent | kWritable);
  bench.cpu.registers.gpr[kRbx] = 0x600000;
  bench.SetCode(Code{0xf3, 0x48, 0x0f, 0xb8, 0x03});
  const Completion completion = bench.Complete();
  CHECK(completion.outcome == Outcome::kNotRecognised);
  CHECK(completion.description.find("not in RAM") != std::string::npos);
}

TEST_CASE("Non-canonical operands raise #GP, or #SS through the stack's registers") {
  Bench bench;
  bench.cpu.registers.gpr[kRbx] = 0x0000800000000000;
  ExpectException(bench, {0xf3, 0x48, 0x0f, 0xb8, 0x03}, 13, 0);
  bench.cpu.registers.gpr[kRbp] = 0x0000800000000000;
  ExpectException(bench, {0xf3, 0x48, 0x0f, 0xb8, 0x45, 0x00}, 12, 0);
  bench.cpu.registers.gpr[kRsp] = 0x0000800000000000;
  ExpectException(bench, {0xf3, 0x48, 0x0f, 0xb8, 0x04, 0x24}, 12, 0);
  // FS takes the stack's place, and R13 is no stack register.
  ExpectException(bench, {0x64, 0xf3, 0x48, 0x0f, 0xb8, 0x04, 0x24}, 13, 0);
  bench.cpu.registers.gpr[13] = 0x0000800000000000;
  ExpectException(bench, {0xf3, 0x49, 0x0f, 0xb8, 0x45, 0x00}, 13, 0);
  // An operand that only ends there.
  bench.cpu.registers.gpr[kRbx] = 0x00007ffffffffffc;
  bench.space.Map(0x00007ffffffff000, bench.space.NewPage(), kPresent);
  ExpectException(bench, {0xf3, 0x48, 0x0f, 0xb8, 0x03}, 13, 0);
}

TEST_CASE("An instruction may cross into a page, whose absence is a fault of its own") {
  const Code popcnt = {0xf3, 0x48, 0x0f, 0xb8, 0xc1};
  Bench bench;
  bench.cpu.registers.gpr[kRcx] = 0xff;
  bench.SetCode(popcnt, 4096 - 2);
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  CHECK(bench.cpu.registers.gpr[kRax] == 8);

  bench.SetCode(popcnt, 4096 - 2);
  bench.space.Entry(bench.code.address() + 4096) = 0;
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 14);
  CHECK(bench.cpu.injected->error_code == 0x10u);
  CHECK(bench.cpu.injected->payload == bench.code.address() + 4096);
}

TEST_CASE("The page behind an instruction is not looked at when it ends before") {
  Bench bench;
  bench.SetCode(Code{0x9b}, 4095);
  bench.space.Entry(bench.code.address() + 4096) = 0;
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
}

TEST_CASE("A breakpoint that was patched away since KVM fetched it still traps") {
  Bench bench;
  bench.SetCode(Code{0xe9, 0, 0, 0, 0});
  const Code fetched = {0xcc, 0, 0, 0, 0};

  auto result = CompleteInstruction(bench.cpu, bench.space.memory(), fetched);

  REQUIRE(result.ok());
  CHECK(result.value().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 3);
  CHECK(bench.cpu.registers.rip == bench.code.address() + 1);
}

TEST_CASE("What KVM fetched in part is read on in memory") {
  const Code popcnt = {0xf3, 0x48, 0x0f, 0xb8, 0xc1};
  Bench bench;
  for (size_t known = 0; known <= popcnt.size(); ++known) {
    CAPTURE(known);
    bench.SetCode(popcnt, 4096 - 3);
    bench.cpu.registers.gpr[kRcx] = 0xff;
    auto result =
        CompleteInstruction(bench.cpu, bench.space.memory(), std::span(popcnt).first(known));
    REQUIRE(result.ok());
    CHECK(result.value().outcome == Outcome::kCompleted);
    CHECK(bench.cpu.registers.gpr[kRax] == 8);
  }
}

TEST_CASE("Fifteen bytes are an instruction's limit") {
  Bench bench;
  Code code(14, 0x66);
  code.push_back(0x9b);
  ExpectCompleted(bench, code);
  code.insert(code.begin(), 0x66);
  ExpectException(bench, code, 13, 0);
}

TEST_CASE("A failure of the vCPU is an error, not a completion") {
  Bench bench;
  bench.cpu.fail = true;
  for (const Code& code : {Code{0x9b}, Code{0xcc}, Code{0x0f, 0xff}, Code{0x0f, 0xae, 0x13}}) {
    bench.cpu.registers.gpr[kRbx] = bench.data.address();
    bench.SetCode(code);
    auto result = CompleteInstruction(bench.cpu, bench.space.memory(), {});
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::kKvm);
  }
}

}  // namespace forklet::test
