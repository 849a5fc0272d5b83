#include "arch/x86_64/msrs.h"

#include "arch/x86_64/layout.h"

namespace forklet {

Result<std::vector<uint32_t>> ProbeMsrs(const Kvm& kvm, const CpuidTable& cpuid) {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> listed, kvm.GetMsrIndexList());
  ASSIGN_OR_RETURN(const VmFd vm, kvm.CreateVm());
  TRY(vm.SetRealModeAreas(layout::kTss, layout::kIdentityMap));
  TRY(vm.CreateIrqchip());
  ASSIGN_OR_RETURN(const VcpuFd vcpu, vm.CreateVcpu(0, kvm.vcpu_mmap_size()));
  TRY(vcpu.SetCpuid(cpuid));
  ASSIGN_OR_RETURN(const std::vector<kvm_msr_entry> readable, vcpu.GetMsrs(listed));
  std::vector<uint32_t> kept;
  for (const kvm_msr_entry& entry : readable) {
    if (entry.index == kMsrTsc || entry.index == kMsrTscDeadline) continue;
    // Some are there to be read only.
    if (vcpu.SetMsrs({&entry, 1}).ok()) kept.push_back(entry.index);
  }
  return kept;
}

}  // namespace forklet
