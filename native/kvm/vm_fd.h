#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/event_fd.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "kvm/uapi.h"
#include "kvm/vcpu_fd.h"
#include "memory/guest_address.h"

namespace forklet {

// One KVM VM: the VM scope of the KVM API, one method per request.
//
// Thread: any; the kernel serialises. The cost of some requests depends on
// their order: memslots come before the irqchip and the vCPUs, since with a
// vCPU in place each new memslot waits for a grace period (milliseconds).
class VmFd {
 public:
  explicit VmFd(UniqueFd fd) : fd_(std::move(fd)) {}

  // KVM_SET_USER_MEMORY_REGION.
  Status SetMemoryRegion(uint32_t slot, GuestAddress address, uint64_t size,
                         const void* host) const;
  // KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR: what VMX needs for real
  // mode; no effect elsewhere. Before the first vCPU.
  Status SetRealModeAreas(GuestAddress tss, GuestAddress identity_map) const;
  // KVM_CREATE_IRQCHIP: PICs, IOAPIC and a local APIC a vCPU.
  Status CreateIrqchip() const;
  // KVM_GET_IRQCHIP and KVM_SET_IRQCHIP of one of its chips, KVM_IRQCHIP_*.
  Result<kvm_irqchip> GetIrqchip(uint32_t chip) const;
  Status SetIrqchip(const kvm_irqchip& chip) const;
  // KVM_GET_CLOCK and KVM_SET_CLOCK: the kvm-clock, in nanoseconds.
  Result<uint64_t> GetClock() const;
  Status SetClock(uint64_t nanoseconds) const;
  // KVM_ENABLE_CAP without flags and with one argument.
  Status EnableCapability(uint32_t capability, const char* name, uint64_t argument) const;
  // KVM_IRQFD: a signal of `event` is an edge on `gsi`.
  Status AddIrqfd(const EventFd& event, uint32_t gsi) const;
  // KVM_IOEVENTFD: a 4-byte MMIO write of `value` to `address` signals `event`
  // without an exit.
  Status AddIoeventfd(const EventFd& event, GuestAddress address, uint32_t value) const;
  // KVM_CREATE_VCPU, with its shared area mapped.
  Result<VcpuFd> CreateVcpu(uint32_t id, size_t mmap_size) const;
  // KVM_GET_STATS_FD: the VM's statistics.
  Result<UniqueFd> OpenStats() const;

 private:
  UniqueFd fd_;
};

}  // namespace forklet
