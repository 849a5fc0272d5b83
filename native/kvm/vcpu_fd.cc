#include "kvm/vcpu_fd.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "kvm/ioctl.h"

namespace forklet {

int VcpuFd::Run() const { return ::ioctl(fd_.get(), KVM_RUN, 0ul) < 0 ? errno : 0; }

int VcpuFd::RunWithSignals(const sigset_t& blocked) const {
  SignalMask mask;
  // The C library's set is longer than the kernel's, and begins with it.
  static_assert(sizeof blocked >= sizeof mask.blocked);
  std::memcpy(mask.blocked, &blocked, sizeof mask.blocked);
  if (::ioctl(fd_.get(), kSetSignalMask, &mask) != 0) return errno;
  const int error = Run();
  ::ioctl(fd_.get(), kSetSignalMask, nullptr);
  return error;
}

std::span<uint8_t> VcpuFd::PortData() const {
  const kvm_run& run = shared();
  const uint64_t offset = run.io.data_offset;
  const uint64_t bytes = uint64_t{run.io.size} * run.io.count;
  if (offset > shared_.size() || bytes > shared_.size() - offset) return {};
  return {shared_.data() + offset, static_cast<size_t>(bytes)};
}

Result<kvm_regs> VcpuFd::GetRegs() const {
  kvm_regs regs = {};
  TRY(KVM_IOCTL(fd_, KVM_GET_REGS, &regs));
  return regs;
}

Status VcpuFd::SetRegs(const kvm_regs& regs) const {
  TRY(KVM_IOCTL(fd_, KVM_SET_REGS, &regs));
  return Ok();
}

Result<kvm_sregs> VcpuFd::GetSregs() const {
  kvm_sregs sregs = {};
  TRY(KVM_IOCTL(fd_, KVM_GET_SREGS, &sregs));
  return sregs;
}

Status VcpuFd::SetSregs(const kvm_sregs& sregs) const {
  TRY(KVM_IOCTL(fd_, KVM_SET_SREGS, &sregs));
  return Ok();
}

Status VcpuFd::SetCpuid(const CpuidTable& table) const {
  TRY(Ioctl(fd_, kSetCpuid2, "KVM_SET_CPUID2", &table, std::to_string(table.count) + " entries"));
  return Ok();
}

Result<kvm_lapic_state> VcpuFd::GetLapic() const {
  kvm_lapic_state lapic = {};
  TRY(KVM_IOCTL(fd_, KVM_GET_LAPIC, &lapic));
  return lapic;
}

Status VcpuFd::SetLapic(const kvm_lapic_state& lapic) const {
  TRY(KVM_IOCTL(fd_, KVM_SET_LAPIC, &lapic));
  return Ok();
}

Result<kvm_vcpu_events> VcpuFd::GetEvents() const {
  kvm_vcpu_events events = {};
  TRY(KVM_IOCTL(fd_, KVM_GET_VCPU_EVENTS, &events));
  return events;
}

Status VcpuFd::SetEvents(const kvm_vcpu_events& events) const {
  TRY(KVM_IOCTL(fd_, KVM_SET_VCPU_EVENTS, &events));
  return Ok();
}

Result<kvm_debugregs> VcpuFd::GetDebugRegs() const {
  kvm_debugregs debug = {};
  TRY(KVM_IOCTL(fd_, KVM_GET_DEBUGREGS, &debug));
  return debug;
}

Status VcpuFd::SetDebugRegs(const kvm_debugregs& debug) const {
  TRY(KVM_IOCTL(fd_, KVM_SET_DEBUGREGS, &debug));
  return Ok();
}

Result<kvm_xcrs> VcpuFd::GetXcrs() const {
  kvm_xcrs xcrs = {};
  TRY(KVM_IOCTL(fd_, KVM_GET_XCRS, &xcrs));
  return xcrs;
}

Status VcpuFd::SetXcrs(const kvm_xcrs& xcrs) const {
  TRY(KVM_IOCTL(fd_, KVM_SET_XCRS, &xcrs));
  return Ok();
}

Result<kvm_mp_state> VcpuFd::GetMpState() const {
  kvm_mp_state state = {};
  TRY(KVM_IOCTL(fd_, KVM_GET_MP_STATE, &state));
  return state;
}

Status VcpuFd::SetMpState(const kvm_mp_state& state) const {
  TRY(KVM_IOCTL(fd_, KVM_SET_MP_STATE, &state));
  return Ok();
}

Result<std::vector<uint8_t>> VcpuFd::GetXsave(size_t bytes) const {
  std::vector<uint8_t> area(bytes);
  if (bytes > kLegacyXsaveBytes) {
    TRY(Ioctl(fd_, kGetXsave2, "KVM_GET_XSAVE2", area.data()));
  } else {
    CHECK(bytes == kLegacyXsaveBytes);
    TRY(Ioctl(fd_, kGetXsave, "KVM_GET_XSAVE", area.data()));
  }
  return area;
}

Status VcpuFd::SetXsave(std::span<const uint8_t> area) const {
  // KVM reads as many bytes as the vCPU's features ask for: the size that
  // KVM_CAP_XSAVE2 reports, through the same request.
  CHECK(area.size() >= kLegacyXsaveBytes);
  TRY(Ioctl(fd_, kSetXsave, "KVM_SET_XSAVE", area.data()));
  return Ok();
}

Status VcpuFd::SetMsrs(std::span<const kvm_msr_entry> entries) const {
  using Table = MsrTable<128>;
  for (size_t done = 0; done < entries.size();) {
    Table table;
    table.count = static_cast<uint32_t>(
        std::min(entries.size() - done, sizeof table.entries / sizeof table.entries[0]));
    std::memcpy(table.entries, &entries[done], table.count * sizeof table.entries[0]);
    auto set = Ioctl(fd_, kSetMsrs, "KVM_SET_MSRS", &table);
    if (!set.ok()) return std::move(set).error();
    // KVM stops at the first MSR that it refuses, and reports no error.
    if (static_cast<uint32_t>(set.value()) != table.count) {
      char text[64];
      std::snprintf(text, sizeof text, "MSR 0x%x was refused", table.entries[set.value()].index);
      return Error{ErrorCode::kKvm, 0, "KVM_SET_MSRS", text};
    }
    done += table.count;
  }
  return Ok();
}

Result<uint64_t> VcpuFd::GetMsr(uint32_t index) const {
  MsrTable<1> table;
  table.count = 1;
  table.entries[0].index = index;
  auto got = Ioctl(fd_, kGetMsrs, "KVM_GET_MSRS", &table);
  if (!got.ok()) return std::move(got).error();
  if (got.value() != 1) {
    char text[64];
    std::snprintf(text, sizeof text, "MSR 0x%x was refused", index);
    return Error{ErrorCode::kKvm, 0, "KVM_GET_MSRS", text};
  }
  return static_cast<uint64_t>(table.entries[0].data);
}

Result<std::vector<kvm_msr_entry>> VcpuFd::GetMsrs(std::span<const uint32_t> indices) const {
  using Table = MsrTable<128>;
  std::vector<kvm_msr_entry> entries;
  for (size_t done = 0; done < indices.size();) {
    Table table;
    table.count = static_cast<uint32_t>(
        std::min(indices.size() - done, sizeof table.entries / sizeof table.entries[0]));
    for (uint32_t i = 0; i < table.count; ++i) table.entries[i].index = indices[done + i];
    auto got = Ioctl(fd_, kGetMsrs, "KVM_GET_MSRS", &table);
    if (!got.ok()) return std::move(got).error();
    const size_t count = std::min<size_t>(static_cast<size_t>(got.value()), table.count);
    entries.insert(entries.end(), table.entries, table.entries + count);
    // KVM stops at the first MSR that it refuses: go on behind that one.
    done += count < table.count ? count + 1 : count;
  }
  return entries;
}

Status VcpuFd::NotifyStopped() const {
  auto notified = KVM_IOCTL(fd_, KVM_KVMCLOCK_CTRL, 0ul);
  // EINVAL: the guest has no kvm-clock.
  if (!notified.ok() && notified.error().sys_errno != EINVAL) return std::move(notified).error();
  return Ok();
}

uint32_t VcpuFd::GetTscKhz() const {
  const int khz = ::ioctl(fd_.get(), KVM_GET_TSC_KHZ, 0ul);
  return khz > 0 ? static_cast<uint32_t>(khz) : 0;
}

Result<UniqueFd> VcpuFd::OpenStats() const {
  auto fd = KVM_IOCTL(fd_, KVM_GET_STATS_FD, 0ul);
  if (!fd.ok()) return std::move(fd).error();
  return UniqueFd(fd.value());
}

}  // namespace forklet
