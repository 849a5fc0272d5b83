// A vCPU and its thread, with a guest of four instructions.
#include "vm/vcpu.h"

#include <condition_variable>
#include <mutex>

#include "arch/x86_64/host_profile.h"
#include "arch/x86_64/layout.h"
#include "doctest.h"
#include "kvm_fixture.h"
#include "value.h"

namespace forklet::test {
namespace {

constexpr uint64_t kMemoryBytes = 64u << 10;
constexpr GuestAddress kCode{0x1000};
constexpr GuestAddress kMark{0x2000};
constexpr uint64_t kPort = 0x80;
constexpr uint8_t kWritten = 0x5a;

// Real mode: MOV AL, kWritten; MOV [kMark], AL; OUT kPort, AL; JMP to itself.
constexpr uint8_t kProgram[] = {0xb0, kWritten, 0xa2, 0x00, 0x20, 0xe6, kPort, 0xeb, 0xfe};

// Waits for the guest to write to its port.
class PortDevice final : public BusDevice {
 public:
  void Read(uint64_t, std::span<uint8_t>) override {}
  void Write(uint64_t, std::span<const uint8_t> data) override {
    std::lock_guard lock(mutex_);
    last_ = data.front();
    written_.notify_all();
  }
  uint8_t WaitWritten() {
    std::unique_lock lock(mutex_);
    written_.wait_until(lock, DeadlineIn(std::chrono::seconds(30)), [this] { return last_ != 0; });
    return last_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable written_;
  uint8_t last_ = 0;  // Under mutex_
};

class FailingObserver final : public VcpuObserver {
 public:
  void OnVcpuExit(ExitReason, std::string detail) override { FAIL_CHECK(detail); }
};

struct SmallGuest {
  SmallGuest() : kvm(Value(Kvm::Open(kKvmPath))), vm(Value(kvm.CreateVm())) {
    REQUIRE(memory.Write(kCode, kProgram));
    REQUIRE(vm.SetRealModeAreas(layout::kTss, layout::kIdentityMap).ok());
    uint32_t slot = 0;
    for (const MemoryRegion& region : memory.regions()) {
      REQUIRE(vm.SetMemoryRegion(slot++, region.start, region.size, region.host).ok());
    }
    REQUIRE(vm.CreateIrqchip().ok());
    const VcpuContext context = {&memory, mmio.get(), ports.get(), &observer, kLegacyXsaveBytes};
    vcpu = std::make_unique<Vcpu>(0, Value(vm.CreateVcpu(0, kvm.vcpu_mmap_size())), context);
    auto sregs = Value(vcpu->fd().GetSregs());
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    REQUIRE(vcpu->fd().SetSregs(sregs).ok());
    kvm_regs regs = {};
    regs.rip = kCode.value;
    regs.rflags = 2;
    REQUIRE(vcpu->fd().SetRegs(regs).ok());
  }

  uint8_t Mark() const {
    uint8_t mark = 0;
    REQUIRE(memory.ReadObject(kMark, mark));
    return mark;
  }

  Kvm kvm;
  GuestMemory memory = Value(GuestMemory::Create(kMemoryBytes));
  VmFd vm;
  PortDevice port;
  std::unique_ptr<Bus> mmio = Value(Bus::Create({}));
  std::unique_ptr<Bus> ports = Value(Bus::Create({{kPort, 1, &port}}));
  FailingObserver observer;
  std::unique_ptr<Vcpu> vcpu;
};

}  // namespace

TEST_CASE("On a vCPU, being prepared takes KVM up to its entry, and not one step further") {
  if (!HaveKvm()) return;
  SmallGuest guest;

  REQUIRE(guest.vcpu->Prepare().ok());
  REQUIRE(guest.vcpu->WaitHeld(DeadlineIn(std::chrono::seconds(30))));

  CHECK(Value(guest.vcpu->fd().GetRegs()).rip == kCode.value);
  CHECK(guest.Mark() == 0);
  // It has been inside KVM_RUN, which was not let down by anything but the kick.
  CHECK(guest.vcpu->fd().shared().exit_reason == KVM_EXIT_INTR);

  REQUIRE(guest.vcpu->Release().ok());
  CHECK(guest.port.WaitWritten() == kWritten);
  CHECK(guest.Mark() == kWritten);
}

TEST_CASE("On a vCPU, being released or stopped while it is prepared loses nothing") {
  if (!HaveKvm()) return;
  for (int attempt = 0; attempt < 20; ++attempt) {
    SmallGuest guest;
    REQUIRE(guest.vcpu->Prepare().ok());
    if (attempt % 2 == 0) {
      REQUIRE(guest.vcpu->Release().ok());
      CHECK(guest.port.WaitWritten() == kWritten);
    } else {
      guest.vcpu->RequestStop();
      guest.vcpu->Join();
      CHECK(guest.Mark() == 0);
    }
  }
}

}  // namespace forklet::test
