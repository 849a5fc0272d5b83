// A frozen VM as bytes, and bytes that are none.
#include "vm/vm_state_io.h"

#include <algorithm>

#include "doctest.h"
#include "kvm/kvm.h"

namespace forklet {
namespace {

HostProfile Host() {
  HostProfile host;
  host.msrs = {0x174, 0xc0000080};
  host.cpuid.count = 1;
  host.cpuid.entries[0].function = 1;
  host.cpuid.entries[0].ecx = 0x0f;
  return host;
}

VmState Frozen(const HostProfile& host) {
  VmState state;
  state.memory_bytes = 64u << 20;
  state.place = ParkPlace::kProgram;
  state.control_connection = 1;
  state.cpuid = host.cpuid;
  for (uint32_t chip = 0; chip < 3; ++chip) state.irqchip.chips[chip].chip_id = chip;
  state.irqchip.clock_ns = 42;
  CpuState cpu;
  cpu.regs.rip = 0x1234;
  cpu.xsave.assign(host.xsave_bytes, 7);
  for (const uint32_t index : host.msrs) {
    kvm_msr_entry msr = {};
    msr.index = index;
    msr.data = uint64_t{index} * 3;
    cpu.msrs.push_back(msr);
  }
  cpu.tsc = 99;
  state.cpus = {cpu, cpu};
  state.parked_vcpu = 1;
  return state;
}

ErrorCode CodeOf(const VmState& state, const HostProfile& host) {
  const auto read = ReadVmState(WriteVmState(state), host);
  REQUIRE_FALSE(read.ok());
  return read.error().code;
}

TEST_CASE("A frozen VM survives as bytes") {
  const HostProfile host = Host();
  const auto bytes = WriteVmState(Frozen(host));

  const auto read = ReadVmState(bytes, host);

  REQUIRE(read.ok());
  CHECK(WriteVmState(read.value()) == bytes);
  CHECK(read.value().cpus[1].regs.rip == 0x1234);
  CHECK(read.value().cpus[0].msrs[1].data == uint64_t{0xc0000080} * 3);
  CHECK(read.value().place == ParkPlace::kProgram);
}

TEST_CASE("A frozen VM that is cut off anywhere, or goes on, is refused") {
  const HostProfile host = Host();
  auto bytes = WriteVmState(Frozen(host));
  for (size_t size = 0; size < bytes.size(); size += std::max<size_t>(1, size / 7)) {
    CAPTURE(size);
    const auto read = ReadVmState({bytes.data(), size}, host);
    REQUIRE_FALSE(read.ok());
    CHECK(read.error().code == ErrorCode::kBadSnapshot);
  }
  bytes.push_back(0);
  CHECK_FALSE(ReadVmState(bytes, host).ok());
}

TEST_CASE("A frozen VM is refused where a CPU feature is missing, and the error names it") {
  HostProfile host = Host();
  const auto bytes = WriteVmState(Frozen(host));
  host.cpuid.entries[0].ecx = 0x07;

  const auto read = ReadVmState(bytes, host);

  REQUIRE_FALSE(read.ok());
  CHECK(read.error().code == ErrorCode::kBadSnapshot);
  CHECK(read.error().detail.find("CPUID 1 ECX 0x8") != std::string::npos);
}

TEST_CASE("A frozen VM is taken by a host with more features than it has seen") {
  HostProfile host = Host();
  const auto bytes = WriteVmState(Frozen(host));
  host.cpuid.entries[0].ecx = 0xff;

  CHECK(ReadVmState(bytes, host).ok());
}

TEST_CASE("A frozen VM of another kind of KVM is refused") {
  HostProfile host = Host();
  const auto bytes = WriteVmState(Frozen(host));
  host.emulated_supervisor = true;

  CHECK_FALSE(ReadVmState(bytes, host).ok());
}

TEST_CASE("A frozen VM whose values are out of range is refused") {
  const HostProfile host = Host();
  VmState state = Frozen(host);
  state.parked_vcpu = 2;
  CHECK(CodeOf(state, host) == ErrorCode::kBadSnapshot);
  state = Frozen(host);
  state.memory_bytes += 1;
  CHECK(CodeOf(state, host) == ErrorCode::kBadSnapshot);
  state = Frozen(host);
  state.cpus.clear();
  CHECK(CodeOf(state, host) == ErrorCode::kBadSnapshot);
  state = Frozen(host);
  state.irqchip.chips[1].chip_id = 7;
  CHECK(CodeOf(state, host) == ErrorCode::kBadSnapshot);
  state = Frozen(host);
  state.cpus[0].xsave.pop_back();
  CHECK(CodeOf(state, host) == ErrorCode::kBadSnapshot);
  state = Frozen(host);
  state.cpus[1].msrs[0].index = 0x1b;
  CHECK(CodeOf(state, host) == ErrorCode::kBadSnapshot);
  state = Frozen(host);
  state.cpuid.count = 1000;
  CHECK(CodeOf(state, host) == ErrorCode::kBadSnapshot);
}

}  // namespace
}  // namespace forklet
