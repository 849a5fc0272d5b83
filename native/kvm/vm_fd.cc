#include "kvm/vm_fd.h"

#include <sys/mman.h>

#include "kvm/ioctl.h"

namespace forklet {

Status VmFd::SetMemoryRegion(uint32_t slot, GuestAddress address, uint64_t size,
                             const void* host) const {
  kvm_userspace_memory_region region = {};
  region.slot = slot;
  region.guest_phys_addr = address.value;
  region.memory_size = size;
  region.userspace_addr = reinterpret_cast<uint64_t>(host);
  TRY(KVM_IOCTL(fd_, KVM_SET_USER_MEMORY_REGION, &region,
                "slot " + std::to_string(slot) + ", " + std::to_string(size) + " bytes"));
  return Ok();
}

Status VmFd::SetRealModeAreas(GuestAddress tss, GuestAddress identity_map) const {
  uint64_t address = identity_map.value;
  TRY(KVM_IOCTL(fd_, KVM_SET_IDENTITY_MAP_ADDR, &address));
  TRY(KVM_IOCTL(fd_, KVM_SET_TSS_ADDR, tss.value));
  return Ok();
}

Status VmFd::CreateIrqchip() const {
  TRY(KVM_IOCTL(fd_, KVM_CREATE_IRQCHIP, 0ul));
  return Ok();
}

Result<kvm_irqchip> VmFd::GetIrqchip(uint32_t chip) const {
  kvm_irqchip state = {};
  state.chip_id = chip;
  TRY(KVM_IOCTL(fd_, KVM_GET_IRQCHIP, &state, "chip " + std::to_string(chip)));
  return state;
}

Status VmFd::SetIrqchip(const kvm_irqchip& chip) const {
  TRY(KVM_IOCTL(fd_, KVM_SET_IRQCHIP, &chip, "chip " + std::to_string(chip.chip_id)));
  return Ok();
}

Result<uint64_t> VmFd::GetClock() const {
  kvm_clock_data data = {};
  TRY(KVM_IOCTL(fd_, KVM_GET_CLOCK, &data));
  return static_cast<uint64_t>(data.clock);
}

Status VmFd::SetClock(uint64_t nanoseconds) const {
  kvm_clock_data data = {};
  data.clock = nanoseconds;
  TRY(KVM_IOCTL(fd_, KVM_SET_CLOCK, &data));
  return Ok();
}

Status VmFd::EnableCapability(uint32_t capability, const char* name, uint64_t argument) const {
  kvm_enable_cap enable = {};
  enable.cap = capability;
  enable.args[0] = argument;
  TRY(KVM_IOCTL(fd_, KVM_ENABLE_CAP, &enable, name));
  return Ok();
}

Status VmFd::AddIrqfd(const EventFd& event, uint32_t gsi) const {
  kvm_irqfd irqfd = {};
  irqfd.fd = static_cast<uint32_t>(event.fd());
  irqfd.gsi = gsi;
  TRY(KVM_IOCTL(fd_, KVM_IRQFD, &irqfd, "GSI " + std::to_string(gsi)));
  return Ok();
}

Status VmFd::AddIoeventfd(const EventFd& event, GuestAddress address, uint32_t value) const {
  kvm_ioeventfd ioeventfd = {};
  ioeventfd.datamatch = value;
  ioeventfd.addr = address.value;
  ioeventfd.len = sizeof value;
  ioeventfd.fd = event.fd();
  ioeventfd.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
  TRY(KVM_IOCTL(fd_, KVM_IOEVENTFD, &ioeventfd));
  return Ok();
}

Result<VcpuFd> VmFd::CreateVcpu(uint32_t id, size_t mmap_size) const {
  auto fd =
      KVM_IOCTL(fd_, KVM_CREATE_VCPU, static_cast<unsigned long>(id), "vCPU " + std::to_string(id));
  if (!fd.ok()) return std::move(fd).error();
  UniqueFd owned(fd.value());
  ASSIGN_OR_RETURN(Mapping shared,
                   Mapping::Create(owned, mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, 0));
  return VcpuFd(std::move(owned), std::move(shared));
}

Result<UniqueFd> VmFd::OpenStats() const {
  auto fd = KVM_IOCTL(fd_, KVM_GET_STATS_FD, 0ul);
  if (!fd.ok()) return std::move(fd).error();
  return UniqueFd(fd.value());
}

}  // namespace forklet
