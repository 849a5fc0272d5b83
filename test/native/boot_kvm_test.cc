// What a boot sets on a vCPU, as KVM has it then.
#include <cstring>

#include "arch/x86_64/boot.h"
#include "arch/x86_64/cpuid.h"
#include "arch/x86_64/host_profile.h"
#include "arch/x86_64/layout.h"
#include "doctest.h"
#include "kvm/kvm.h"
#include "kvm_fixture.h"

namespace forklet::test {
namespace {

// A VM of two vCPUs; the second, which the guest starts, is the one looked at.
struct BootedVcpu {
  BootedVcpu() : kvm(OpenKvm()), host(ProfileOf(kvm)), vm(CreateVm(kvm)) {
    REQUIRE(vm.SetRealModeAreas(layout::kTss, layout::kIdentityMap).ok());
    REQUIRE(vm.CreateIrqchip().ok());
  }

  VcpuFd Create(uint32_t id) const {
    auto vcpu = vm.CreateVcpu(id, kvm.vcpu_mmap_size());
    REQUIRE(vcpu.ok());
    REQUIRE(vcpu.value().SetCpuid(VcpuCpuid(host.cpuid, id, 2, host.tsc_deadline)).ok());
    return std::move(vcpu).value();
  }

  static Kvm OpenKvm() {
    auto kvm = Kvm::Open(kKvmPath);
    REQUIRE(kvm.ok());
    return std::move(kvm).value();
  }
  static HostProfile ProfileOf(const Kvm& kvm) {
    auto host = CachedHostProfile(kKvmPath, kvm);
    REQUIRE(host.ok());
    return *host.value();
  }
  static VmFd CreateVm(const Kvm& kvm) {
    auto vm = kvm.CreateVm();
    REQUIRE(vm.ok());
    return std::move(vm).value();
  }

  Kvm kvm;
  HostProfile host;
  VmFd vm;
};

uint32_t ApicRegister(const VcpuFd& vcpu, size_t offset) {
  auto lapic = vcpu.GetLapic();
  REQUIRE(lapic.ok());
  uint32_t value;
  std::memcpy(&value, lapic.value().regs + offset, sizeof value);
  return value;
}

}  // namespace

TEST_CASE("On a vCPU, memory is write-back by default and string instructions are fast") {
  if (!HaveKvm()) return;
  const BootedVcpu machine;
  const VcpuFd vcpu = machine.Create(1);

  REQUIRE(SetBootMsrs(vcpu).ok());

  constexpr uint32_t kMtrrDefType = 0x2ff, kMiscEnable = 0x1a0;
  auto memory_type = vcpu.GetMsr(kMtrrDefType);
  auto enabled = vcpu.GetMsr(kMiscEnable);
  REQUIRE(memory_type.ok());
  REQUIRE(enabled.ok());
  CHECK(memory_type.value() == 0x806);  // MTRRs on, write-back
  CHECK((enabled.value() & 1) == 1);
}

TEST_CASE("On a vCPU, LINT0 takes the PIC's interrupts and LINT1 is NMI") {
  if (!HaveKvm()) return;
  const BootedVcpu machine;
  const VcpuFd vcpu = machine.Create(1);

  REQUIRE(SetBootLapic(vcpu).ok());

  constexpr uint32_t kDeliveryMode = 0x700;
  CHECK((ApicRegister(vcpu, 0x350) & kDeliveryMode) == 0x700);
  CHECK((ApicRegister(vcpu, 0x360) & kDeliveryMode) == 0x400);
}

TEST_CASE("On a vCPU, XCR0 is what was set, where the guest's own write goes unseen") {
  if (!HaveKvm()) return;
  const BootedVcpu machine;
  const uint64_t components = SupportedXcr0(machine.host.cpuid);
  if (components == 0) return;
  const VcpuFd vcpu = machine.Create(1);

  REQUIRE(SetBootXcr0(vcpu, components).ok());

  auto xcrs = vcpu.GetXcrs();
  REQUIRE(xcrs.ok());
  CHECK(xcrs.value().xcrs[0].value == components);
}

}  // namespace forklet::test
