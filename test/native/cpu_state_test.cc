#include "arch/x86_64/cpu_state.h"

#include <cstring>

#include "doctest.h"

namespace forklet {
namespace {

constexpr uint32_t kTscKhz = 2'000'000;
constexpr uint64_t kTicksPerMs = kTscKhz;

HostProfile DeadlineHost() {
  HostProfile host;
  host.tsc_deadline = true;
  host.tsc_khz = kTscKhz;
  return host;
}

TEST_CASE("A vCPU that is at rest has no interrupt on its way") {
  CHECK(!HasPendingInterrupt(CpuState{}));
}

TEST_CASE("A vector that the local APIC has taken in is an interrupt on its way") {
  CpuState state;
  // Vector 236, the timer's of Linux: bit 12 of the last of eight words.
  const uint32_t word = 1u << 12;
  std::memcpy(state.lapic.regs + 0x270, &word, sizeof word);

  CHECK(HasPendingInterrupt(state));
}

TEST_CASE("An interrupt that was accepted already is on its way") {
  CpuState state;
  state.events.interrupt.injected = 1;

  CHECK(HasPendingInterrupt(state));
}

TEST_CASE("A timer is due when its deadline is less than 2 ms ahead, or has passed") {
  CpuState state;
  state.tsc = uint64_t{1} << 40;
  const HostProfile host = DeadlineHost();

  state.tsc_deadline = state.tsc + 2 * kTicksPerMs;
  CHECK(!HasTimerDue(state, host));
  state.tsc_deadline = state.tsc + 2 * kTicksPerMs - 1;
  CHECK(HasTimerDue(state, host));
  state.tsc_deadline = state.tsc - 1;
  CHECK(HasTimerDue(state, host));
}

TEST_CASE("A timer that is not armed, or that KVM does not offer, is not due") {
  CpuState state;
  state.tsc = 1;
  CHECK(!HasTimerDue(state, DeadlineHost()));

  state.tsc_deadline = 2;
  CHECK(!HasTimerDue(state, HostProfile{}));
}

}  // namespace
}  // namespace forklet
