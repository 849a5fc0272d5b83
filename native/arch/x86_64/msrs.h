#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kvm/kvm.h"

namespace forklet {

inline constexpr uint32_t kMsrTsc = 0x10;
inline constexpr uint32_t kMsrTscDeadline = 0x6e0;

// The MSRs that a snapshot keeps: all that KVM lists, which a vCPU of this host
// can read and write back. The TSC and its deadline are not among them: they are
// times, and start when a fork does. Found by trying, with a VM of its own.
Result<std::vector<uint32_t>> ProbeMsrs(const Kvm& kvm, const CpuidTable& cpuid);

}  // namespace forklet
