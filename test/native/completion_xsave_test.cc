#include <algorithm>
#include <cstring>
#include <random>

#include "arch/x86_64/completion/xsave_area.h"
#include "completion_fixture.h"
#include "doctest.h"

namespace forklet::test {
namespace {

using Outcome = Completion::Outcome;
using Code = std::vector<uint8_t>;
using State = std::vector<uint8_t>;

const Code kXsave = {0x0f, 0xae, 0x23};  // The operand of all is [rbx]
const Code kXsave64 = {0x48, 0x0f, 0xae, 0x23};
const Code kXsaveopt64 = {0x48, 0x0f, 0xae, 0x33};
const Code kXsavec64 = {0x48, 0x0f, 0xc7, 0x23};
const Code kXrstor = {0x0f, 0xae, 0x2b};
const Code kXrstor64 = {0x48, 0x0f, 0xae, 0x2b};

constexpr uint64_t kAvxBit = 4;

// PKRU is left alone: on the host's processor it guards this very process.
uint64_t TestedXcr0() { return HostXcr0() & ~(uint64_t{1} << kXstatePkruBit); }

void SetMask(Bench& bench, uint64_t mask) {
  bench.cpu.registers.gpr[kRax] = (mask & 0xffffffff) | 0xabcd00000000;
  bench.cpu.registers.gpr[kRdx] = mask >> 32;
}

uint64_t U64(std::span<const uint8_t> bytes, uint64_t offset) {
  uint64_t value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

void PutU64(std::span<uint8_t> bytes, uint64_t offset, uint64_t value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

// The state as a program would see it: initial components written out, and
// nothing that carries no state.
State Canonical(State state) {
  XsaveArea area(state);
  area.MaterialiseInit(TestedXcr0());
  State result(4096);
  XsaveArea target(result);
  const auto copy = [&](uint64_t offset, uint64_t size) {
    std::copy_n(state.begin() + static_cast<long>(offset), size,
                result.begin() + static_cast<long>(offset));
  };
  copy(kXsaveX87, kXsaveX87Bytes);
  copy(kXsaveMxcsr, 4);
  copy(kXsaveSt, kXsaveStBytes + kXsaveXmmBytes);
  ForEachExtended(TestedXcr0(), [&](unsigned bit) {
    copy(XsaveLayout::OfHost().component(bit).offset, XsaveLayout::OfHost().component(bit).size);
    return true;
  });
  return result;
}

// Makes the bench's operand `offset` bytes into its data, filled at random.
void SetOperand(Bench& bench, size_t offset, uint32_t seed) {
  std::mt19937 random(seed);
  for (size_t i = 0; i < bench.data.size(); ++i) {
    bench.data.data()[i] = static_cast<uint8_t>(random());
  }
  bench.data.Publish(bench.space);
  bench.cpu.registers.gpr[kRbx] = bench.data.address() + offset;
}

// Saves on both and compares the whole memory around the operand.
void CompareSave(Bench& bench, const Code& code, uint64_t mask, size_t offset) {
  SetOperand(bench, offset, static_cast<uint32_t>(mask));
  SetMask(bench, mask);
  bench.SetCode(code);
  CpuRegisters native = bench.cpu.registers;
  State native_state = bench.cpu.xsave;

  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  REQUIRE(bench.RunNatively(native, &native_state));

  State ours = bench.space.Read(bench.data.address(), bench.data.size());
  const std::span<const uint8_t> theirs(bench.data.data(), bench.data.size());
  // Reporting SSE as in use, which is stored anyway, is allowed.
  const uint64_t our_bv = U64(ours, offset + kXsaveHeader);
  const uint64_t their_bv = U64(theirs, offset + kXsaveHeader);
  CHECK((our_bv & ~kXstateSse) == (their_bv & ~kXstateSse));
  CHECK((their_bv & ~our_bv) == 0);
  PutU64(ours, offset + kXsaveHeader, their_bv);
  const auto difference = std::mismatch(ours.begin(), ours.end(), theirs.begin());
  CHECK(difference.first - ours.begin() == static_cast<long>(ours.size()));
  CHECK(bench.cpu.registers.gpr == native.gpr);
}

// Restores on both, from what the data holds, and compares the states.
void CompareRestore(Bench& bench, const Code& code, uint64_t mask) {
  SetMask(bench, mask);
  bench.SetCode(code);
  bench.data.Publish(bench.space);
  CpuRegisters native = bench.cpu.registers;
  State native_state = bench.cpu.xsave;
  bench.cpu.injected.reset();

  const Completion completion = bench.Complete();
  const bool ran = bench.RunNatively(native, &native_state);

  CHECK(ran == (completion.outcome == Outcome::kCompleted));
  if (!ran) {
    REQUIRE(bench.cpu.injected.has_value());
    CHECK(int{bench.cpu.injected->vector} == 13);
    CHECK(bench.cpu.injected->error_code == 0u);
    return;
  }
  const State ours = Canonical(bench.cpu.xsave), theirs = Canonical(native_state);
  const auto difference = std::mismatch(ours.begin(), ours.end(), theirs.begin());
  CHECK(difference.first - ours.begin() == static_cast<long>(ours.size()));
}

// Subsets of the enabled components, and masks with bits beyond.
std::vector<uint64_t> Masks() {
  return {0, 1, 2, 3, kAvxBit, 5, 6, 7, 0xe0, 0xe7, ~uint64_t{0} & ~(uint64_t{1} << 9)};
}

// Puts a valid state in the given format where RBX points.
void PutState(Bench& bench, size_t offset, const Code& save, uint64_t mask, uint32_t seed) {
  SetOperand(bench, offset, seed);
  std::fill_n(bench.data.data(), bench.data.size(), 0);
  State state = RandomXsave(seed);
  CpuRegisters registers = bench.cpu.registers;
  registers.gpr[kRax] = mask & TestedXcr0();
  registers.gpr[kRdx] = 0;
  bench.SetCode(save);
  registers.rip = bench.code.address();
  REQUIRE(bench.RunNatively(registers, &state));
}

}  // namespace

TEST_CASE("XSAVE stores what the host's processor stores") {
  if (!HostXsaveIsExact()) return;
  Bench bench;
  for (const Code& code : {kXsave64, kXsave}) {
    for (const uint64_t mask : Masks()) {
      CAPTURE(mask);
      bench.cpu.xsave = RandomXsave(static_cast<uint32_t>(mask));
      CompareSave(bench, code, mask, 64);
    }
  }
}

TEST_CASE("XSAVE across pages stores to all of them") {
  if (!HostXsaveIsExact()) return;
  Bench bench;
  for (const size_t offset : {4096 - 64, 4096 - 128, 4096 - 512, 4096 - 576, 4096 - 640}) {
    CAPTURE(offset);
    CompareSave(bench, kXsave64, 7, offset);
  }
}

TEST_CASE("XSAVE of initial components reports them so, and stores initial values") {
  if (!HostXsaveIsExact()) return;
  Bench bench;
  for (const uint64_t in_use : {0, 1, 2, 3, 4, 5, 6}) {
    CAPTURE(in_use);
    XsaveArea area(bench.cpu.xsave);
    area.set_xstate_bv(in_use);
    area.set_mxcsr(kMxcsrInit);
    CompareSave(bench, kXsave64, 7, 0);
  }
}

TEST_CASE("XSAVEOPT stores everything, which it may") {
  constexpr uint64_t kX87ToAvx512 = 0xe7;  // What the fixture fills
  Bench bench;
  SetOperand(bench, 0, 3);
  SetMask(bench, kX87ToAvx512);
  bench.SetCode(kXsaveopt64);
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  State stored = bench.space.Read(bench.data.address(), 4096);
  PutU64(stored, kXsaveHeader, U64(stored, kXsaveHeader) & kX87ToAvx512);
  CHECK(Canonical(stored) == Canonical(bench.cpu.xsave));
}

TEST_CASE("XSAVEC stores what the host's processor stores, where it has it") {
  if (!XsaveLayout::OfHost().has_xsavec()) return;
  Bench bench;
  for (const uint64_t mask : Masks()) {
    CAPTURE(mask);
    bench.cpu.xsave = RandomXsave(static_cast<uint32_t>(mask));
    CompareSave(bench, kXsavec64, mask, 128);
  }
  for (const uint64_t in_use : {0, 1, 2, 4}) {
    CAPTURE(in_use);
    XsaveArea(bench.cpu.xsave).set_xstate_bv(in_use);
    XsaveArea(bench.cpu.xsave).set_mxcsr(kMxcsrInit);
    CompareSave(bench, kXsavec64, 7, 128);
  }
}

TEST_CASE("XRSTOR loads what the host's processor loads, from standard format") {
  Bench bench;
  for (const Code& code : {kXrstor64, kXrstor}) {
    for (const uint64_t mask : Masks()) {
      for (const uint64_t in_use : {0, 1, 2, 3, 4, 5, 6, 7}) {
        CAPTURE(mask);
        CAPTURE(in_use);
        bench.cpu.xsave = RandomXsave(11);
        PutState(bench, 64, kXsave64, 7, 12);
        PutU64({bench.data.data(), 4096}, 64 + kXsaveHeader, in_use);
        CompareRestore(bench, code, mask);
      }
    }
  }
}

TEST_CASE("XRSTOR loads what the host's processor loads, from compacted format") {
  if (!XsaveLayout::OfHost().has_xsavec()) return;
  Bench bench;
  for (const uint64_t saved : {1, 3, 4, 6, 7}) {
    for (const uint64_t mask : Masks()) {
      for (const uint64_t dropped : {0, 1, 2, 4, 7}) {
        CAPTURE(saved);
        CAPTURE(mask);
        bench.cpu.xsave = RandomXsave(13);
        PutState(bench, 64, kXsavec64, saved, 14);
        const std::span<uint8_t> data(bench.data.data(), 4096);
        PutU64(data, 64 + kXsaveHeader, U64(data, 64 + kXsaveHeader) & ~dropped);
        CompareRestore(bench, kXrstor64, mask);
      }
    }
  }
}

TEST_CASE("XRSTOR refuses a bad header as the host's processor does") {
  Bench bench;
  const auto compare_with = [&](uint64_t xstate_bv, uint64_t xcomp_bv, int reserved_byte) {
    PutState(bench, 0, kXsave64, 7, 15);
    const std::span<uint8_t> data(bench.data.data(), 4096);
    PutU64(data, kXsaveHeader, xstate_bv);
    PutU64(data, kXsaveHeader + 8, xcomp_bv);
    if (reserved_byte >= 0) data[kXsaveHeader + static_cast<size_t>(reserved_byte)] = 1;
    CAPTURE(xstate_bv);
    CAPTURE(xcomp_bv);
    CAPTURE(reserved_byte);
    CompareRestore(bench, kXrstor64, 7);
  };
  constexpr uint64_t kCompact = kXcompCompacted;
  for (int byte = -1; byte < 64; byte = byte < 0 ? 8 : byte + 1) compare_with(7, 0, byte);
  for (int byte = 16; byte < 64; ++byte) compare_with(3, kCompact | 7, byte);
  compare_with(uint64_t{1} << 60, 0, -1);
  compare_with(uint64_t{1} << 63, 0, -1);
  compare_with(7, 7, -1);
  compare_with(7, kCompact | 3, -1);
  compare_with(7, kCompact | 7, -1);
  compare_with(3, kCompact | 3 | uint64_t{1} << 60, -1);
  compare_with(3, kCompact | 3 | uint64_t{1} << 62, -1);
  compare_with(0, kCompact, -1);
}

TEST_CASE("XRSTOR refuses reserved MXCSR bits only when it would load them") {
  if (!HostXsaveIsExact()) return;
  Bench bench;
  for (const uint64_t mask : {0, 1, 2, 4, 7}) {
    for (const uint64_t in_use : {0, 1, 2, 7}) {
      CAPTURE(mask);
      CAPTURE(in_use);
      PutState(bench, 0, kXsave64, 7, 16);
      const std::span<uint8_t> data(bench.data.data(), 4096);
      PutU64(data, kXsaveHeader, in_use);
      data[kXsaveMxcsr + 2] = 1;
      CompareRestore(bench, kXrstor64, mask);
    }
  }
}

TEST_CASE("The MXCSR reaches KVM even where it is the only state of SSE and AVX") {
  Bench bench;
  PutState(bench, 0, kXsave64, 7, 17);
  PutU64({bench.data.data(), 4096}, kXsaveHeader, 0);
  SetMask(bench, 7);
  bench.SetCode(kXrstor64);
  bench.data.Publish(bench.space);

  CHECK(bench.Complete().outcome == Outcome::kCompleted);

  // KVM takes the MXCSR only with a component that uses it.
  CHECK((XsaveArea(bench.cpu.xsave).xstate_bv() & kXstateSse) != 0);
  CHECK(XsaveArea(bench.cpu.xsave).mxcsr() == 0x1fa0);
}

TEST_CASE("A state that XSAVE stored comes back whole by XRSTOR") {
  Bench bench;
  const State first = bench.cpu.xsave;
  SetOperand(bench, 64, 18);
  std::fill_n(bench.data.data(), bench.data.size(), 0);
  bench.data.Publish(bench.space);
  SetMask(bench, ~uint64_t{0});
  bench.SetCode(kXsave64);
  CHECK(bench.Complete().outcome == Outcome::kCompleted);

  bench.cpu.xsave = RandomXsave(19);
  bench.SetCode(kXrstor64);
  CHECK(bench.Complete().outcome == Outcome::kCompleted);

  CHECK(Canonical(bench.cpu.xsave) == Canonical(first));
}

TEST_CASE("The XSAVE family needs OSXSAVE, a clear TS and an aligned operand") {
  Bench bench;
  for (const Code& code : {kXsave64, kXrstor64, kXsaveopt64}) {
    SetOperand(bench, 8, 20);
    bench.SetCode(code);
    CHECK(bench.Complete().outcome == Outcome::kInjected);
    CHECK(bench.cpu.injected->vector == 13);
    bench.cpu.control.cr0 |= x86::kCr0Ts;
    CHECK(bench.Complete().outcome == Outcome::kInjected);
    CHECK(bench.cpu.injected->vector == 7);
    bench.cpu.control.cr4 &= ~x86::kCr4Osxsave;
    CHECK(bench.Complete().outcome == Outcome::kInjected);
    CHECK(bench.cpu.injected->vector == 6);
    bench.cpu.control.cr4 |= x86::kCr4Osxsave;
    bench.cpu.control.cr0 &= ~x86::kCr0Ts;
  }
}

TEST_CASE("A fault in any page leaves memory and state as they were") {
  Bench bench;
  SetOperand(bench, 4096 - 128, 21);
  SetMask(bench, 7);
  const std::vector<uint8_t> before = bench.space.Read(bench.data.address(), 4096);
  bench.space.Entry(bench.data.address() + 4096) &= ~kWritable;
  bench.SetCode(kXsave64);

  CHECK(bench.Complete().outcome == Outcome::kInjected);

  CHECK(bench.cpu.injected->vector == 14);
  CHECK(bench.cpu.injected->error_code == 3u);
  CHECK(bench.cpu.injected->payload == bench.data.address() + 4096);
  CHECK(bench.space.Read(bench.data.address(), 4096) == before);

  PutState(bench, 4096 - 128, kXsave64, 7, 22);
  bench.data.Publish(bench.space);
  bench.space.Entry(bench.data.address()) = 0;
  SetMask(bench, 7);
  bench.SetCode(kXrstor64);
  const State state = bench.cpu.xsave;
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 14);
  CHECK(bench.cpu.injected->error_code == 0u);
  CHECK(bench.cpu.injected->payload == bench.data.address() + 4096 - 128);
  CHECK(bench.cpu.xsave == state);
}

TEST_CASE("XGETBV reads XCR0, the components in use, and nothing else") {
  Bench bench;
  bench.SetCode(Code{0x0f, 0x01, 0xd0});
  bench.cpu.registers.gpr[kRcx] = 0;
  bench.cpu.registers.gpr[kRdx] = ~uint64_t{0};
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  CHECK(bench.cpu.registers.gpr[kRax] == (HostXcr0() & 0xffffffff));
  CHECK(bench.cpu.registers.gpr[kRdx] == HostXcr0() >> 32);

  bench.SetCode(Code{0x0f, 0x01, 0xd0});
  bench.cpu.registers.gpr[kRcx] = 2;
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 13);

  bench.SetCode(Code{0x0f, 0x01, 0xd0});
  bench.cpu.registers.gpr[kRcx] = 1;
  XsaveArea(bench.cpu.xsave).set_xstate_bv(kXstateX87);
  bench.cpu.injected.reset();
  const Completion completion = bench.Complete();
  if (XsaveLayout::OfHost().has_xgetbv1()) {
    CHECK(completion.outcome == Outcome::kCompleted);
    CHECK(bench.cpu.registers.gpr[kRax] == kXstateX87);
  } else {
    CHECK(bench.cpu.injected->vector == 13);
  }
}

TEST_CASE("LDMXCSR and STMXCSR move the MXCSR, and check it") {
  Bench bench;
  SetOperand(bench, 4, 23);
  const uint32_t mxcsr = 0x1f84;
  std::memcpy(bench.data.data() + 4, &mxcsr, sizeof mxcsr);
  bench.data.Publish(bench.space);
  bench.SetCode(Code{0x0f, 0xae, 0x13});
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  CHECK(XsaveArea(bench.cpu.xsave).mxcsr() == mxcsr);

  bench.cpu.registers.gpr[kRbx] += 4094;  // Across a page
  bench.SetCode(Code{0x0f, 0xae, 0x1b});
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  const std::vector<uint8_t> stored = bench.space.Read(bench.data.address() + 4098, 4);
  CHECK(std::memcmp(stored.data(), &mxcsr, sizeof mxcsr) == 0);

  bench.data.data()[4 + 3] = 1;
  bench.data.Publish(bench.space);
  bench.cpu.registers.gpr[kRbx] = bench.data.address() + 4;
  bench.SetCode(Code{0x0f, 0xae, 0x13});
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 13);
}

TEST_CASE("RDPKRU and WRPKRU need PKE, and check their registers") {
  Bench bench;
  const Code rdpkru = {0x0f, 0x01, 0xee}, wrpkru = {0x0f, 0x01, 0xef};
  bench.SetCode(rdpkru);
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 6);

  bench.cpu.control.cr4 |= x86::kCr4Pke;
  bench.cpu.registers.gpr[kRcx] = 1;
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 13);

  bench.cpu.registers.gpr[kRcx] = 0;
  bench.cpu.registers.gpr[kRdx] = 1;
  bench.SetCode(wrpkru);
  CHECK(bench.Complete().outcome == Outcome::kInjected);
  CHECK(bench.cpu.injected->vector == 13);
}

TEST_CASE("WRPKRU sets what RDPKRU reads, where the processor has protection keys") {
  if (XsaveLayout::OfHost().component(kXstatePkruBit).size == 0) return;
  Bench bench;
  bench.cpu.control.cr4 |= x86::kCr4Pke;
  bench.cpu.registers.gpr[kRax] = 0xfffffff0;
  bench.SetCode(Code{0x0f, 0x01, 0xef});
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  bench.cpu.registers.gpr[kRax] = 0;
  bench.SetCode(Code{0x0f, 0x01, 0xee});
  CHECK(bench.Complete().outcome == Outcome::kCompleted);
  CHECK(bench.cpu.registers.gpr[kRax] == 0xfffffff0);
}

}  // namespace forklet::test
