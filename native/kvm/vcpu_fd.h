#pragma once

#include <csignal>
#include <cstdint>
#include <span>
#include <vector>

#include "base/mapping.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "kvm/uapi.h"

namespace forklet {

// One KVM vCPU: the vCPU scope of the KVM API, one method per request.
//
// Thread: one thread at a time, and always the same one from the first Run()
// on (KVM migrates a vCPU between threads, at a cost); RequestExit() from any.
class VcpuFd {
 public:
  VcpuFd(UniqueFd fd, Mapping shared) : shared_(std::move(shared)), fd_(std::move(fd)) {}

  // KVM_RUN. Returns 0, or the errno.
  int Run() const;
  // The same with these signals blocked meanwhile, and no others. One that is
  // pending and not blocked makes KVM turn back right before it would enter the
  // guest, with all that an entry needs made: EINTR.
  int RunWithSignals(const sigset_t& blocked) const;
  // Makes the present or next Run() return EINTR; the caller also signals the
  // vCPU's thread. Thread: any.
  void RequestExit() const { SetImmediateExit(1); }
  void ClearExitRequest() const { SetImmediateExit(0); }

  // The area shared with KVM. Lifetime: this object. Fields describe the exit
  // of the last Run().
  kvm_run& shared() const { return *reinterpret_cast<kvm_run*>(shared_.data()); }
  // The bytes of a port I/O exit inside the shared area; empty when KVM's
  // offsets leave it.
  std::span<uint8_t> PortData() const;

  Result<kvm_regs> GetRegs() const;
  Status SetRegs(const kvm_regs& regs) const;
  Result<kvm_sregs> GetSregs() const;
  Status SetSregs(const kvm_sregs& sregs) const;
  Status SetCpuid(const CpuidTable& table) const;
  Result<kvm_lapic_state> GetLapic() const;
  Status SetLapic(const kvm_lapic_state& lapic) const;
  Result<kvm_vcpu_events> GetEvents() const;
  Status SetEvents(const kvm_vcpu_events& events) const;
  Result<kvm_debugregs> GetDebugRegs() const;
  Status SetDebugRegs(const kvm_debugregs& debug) const;
  Result<kvm_xcrs> GetXcrs() const;
  Status SetXcrs(const kvm_xcrs& xcrs) const;
  Result<kvm_mp_state> GetMpState() const;
  Status SetMpState(const kvm_mp_state& state) const;
  // The whole XSAVE area in standard format. `bytes` is what
  // KVM_CAP_XSAVE2 reports, at least kLegacyXsaveBytes.
  Result<std::vector<uint8_t>> GetXsave(size_t bytes) const;
  Status SetXsave(std::span<const uint8_t> area) const;
  // Sets every MSR, or fails naming the first that KVM refused.
  Status SetMsrs(std::span<const kvm_msr_entry> entries) const;
  Result<uint64_t> GetMsr(uint32_t index) const;
  // Reads what it can of these MSRs: one that KVM refuses is left out.
  Result<std::vector<kvm_msr_entry>> GetMsrs(std::span<const uint32_t> indices) const;
  // KVM_KVMCLOCK_CTRL: tells the guest that it was stopped, so that its soft
  // lockup watchdog does not blame itself. Nothing without a kvm-clock.
  Status NotifyStopped() const;
  // KVM_GET_TSC_KHZ: the rate of the guest's TSC; 0 where KVM does not know.
  uint32_t GetTscKhz() const;
  // KVM_GET_STATS_FD: the vCPU's statistics.
  Result<UniqueFd> OpenStats() const;

 private:
  void SetImmediateExit(uint8_t value) const {
    // Pairs with KVM's read at the start of KVM_RUN; a signal closes the rest.
    __atomic_store_n(&shared().immediate_exit, value, __ATOMIC_SEQ_CST);
  }

  // Teardown: the descriptor is closed before the area is unmapped.
  Mapping shared_;
  UniqueFd fd_;
};

}  // namespace forklet
