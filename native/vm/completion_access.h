#pragma once

#include <vector>

#include "arch/x86_64/completion/completion.h"
#include "kvm/vcpu_fd.h"

namespace forklet {

// A stopped KVM vCPU, as the completion of refused instructions wants it.
//
// Owner: the vCPU's thread, for one instruction. Thread: that one.
class CompletionAccess final : public CpuAccess {
 public:
  // `xsave_bytes` is the size of the host's XSAVE state. `vcpu` outlives this.
  CompletionAccess(const VcpuFd& vcpu, size_t xsave_bytes)
      : vcpu_(vcpu), xsave_bytes_(xsave_bytes) {}

  Result<CpuRegisters> GetRegisters() override;
  Status SetRegisters(const CpuRegisters& registers) override;
  Result<CpuControl> GetControl() override;
  Result<uint64_t> GetXcr0() override;
  Result<uint64_t> GetMsr(uint32_t index) override { return vcpu_.GetMsr(index); }
  Result<std::span<uint8_t>> GetXsave() override;
  Status SetXsave() override { return vcpu_.SetXsave(xsave_); }
  Status Inject(const GuestException& exception) override;

 private:
  const VcpuFd& vcpu_;
  const size_t xsave_bytes_;
  std::vector<uint8_t> xsave_;
};

}  // namespace forklet
