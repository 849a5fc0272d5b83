#include "arch/x86_64/cpuid.h"

#include <bit>
#include <initializer_list>

#include "base/mutant.h"

namespace forklet {

namespace {

constexpr uint32_t kLeaf1EcxXsave = 1u << 26;
constexpr uint32_t kLeaf1EcxVmx = 1u << 5;
constexpr uint32_t kLeaf1EcxTscDeadline = 1u << 24;
constexpr uint32_t kLeaf1EcxHypervisor = 1u << 31;
constexpr uint32_t kLeaf1EdxHtt = 1u << 28;
constexpr uint32_t kExtEcxSvm = 1u << 2;
// What a guest that is forked is better off without (Linux: virt/kvm/x86/cpuid.rst).
// KVM answers the restoring of the asynchronous page faults' MSR with an
// interrupt, which would be the first thing that every fork does; and it writes
// stolen time into guest memory at the first entry, for nobody.
constexpr uint32_t kKvmAsyncPageFaults = 1u << 4 | 1u << 10 | 1u << 14;
constexpr uint32_t kKvmStealTime = 1u << 5;
constexpr uint32_t kExtEcxPerfCounters = 1u << 23;

// Bits that hold the thread's number inside the package.
uint32_t ApicIdBits(uint32_t vcpus) { return static_cast<uint32_t>(std::bit_width(vcpus - 1)); }

// Leaves 0xb and 0x1f: topology by levels. Level 0 is the threads of a core
// (one), level 1 the cores of the package (all vCPUs).
void SetExtendedTopology(kvm_cpuid_entry2& entry, uint32_t id, uint32_t vcpus) {
  constexpr uint32_t kSmtLevel = 1u << 8;
  constexpr uint32_t kCoreLevel = 2u << 8;
  entry.eax = entry.ebx = 0;
  entry.ecx = entry.index;
  if (entry.index == 0) {
    entry.ebx = 1;
    entry.ecx |= kSmtLevel;
  } else if (entry.index == 1) {
    entry.eax = ApicIdBits(vcpus);
    entry.ebx = vcpus;
    entry.ecx |= kCoreLevel;
  }
  entry.edx = id;
}

// Newer kernels report only level 0 of a topology, without which Linux would
// take each vCPU for a package.
void CompleteTopology(CpuidTable& table) {
  for (const uint32_t function : {0xbu, 0x1fu}) {
    bool has_threads = false, has_cores = false;
    for (uint32_t i = 0; i < table.count; ++i) {
      const kvm_cpuid_entry2& entry = table.entries[i];
      if (entry.function != function) continue;
      has_threads |= entry.index == 0;
      has_cores |= entry.index == 1;
    }
    if (!has_threads || has_cores || table.count == CpuidTable::kCapacity) continue;
    kvm_cpuid_entry2& entry = table.entries[table.count++];
    entry = {};
    entry.function = function;
    entry.index = 1;
    entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  }
}

// Leaf 4 (and AMD's 0x8000001d): caches belong to one core each, but for the
// last level.
void SetCacheSharing(kvm_cpuid_entry2& entry, uint32_t vcpus) {
  constexpr uint32_t kLastLevel = 3;
  const uint32_t level = entry.eax >> 5 & 0x7;
  const uint32_t sharing = level >= kLastLevel ? vcpus : 1;
  entry.eax &= 0x3fff;
  entry.eax |= (sharing - 1) << 14;
  if (entry.function == 4) entry.eax |= (vcpus - 1) << 26;
}

}  // namespace

CpuidTable VcpuCpuid(const CpuidTable& supported, uint32_t id, uint32_t vcpus, bool tsc_deadline) {
  if (kMutant == Mutant::kSharedApicId) id = 0;
  CpuidTable table = supported;
  if (kMutant != Mutant::kNoTopology) CompleteTopology(table);
  for (uint32_t i = 0; i < table.count; ++i) {
    kvm_cpuid_entry2& entry = table.entries[i];
    switch (entry.function) {
      case 0x1:
        entry.ebx = (entry.ebx & 0xffff) | id << 24 | std::bit_ceil(vcpus) << 16;
        entry.ecx &= ~kLeaf1EcxVmx;
        entry.ecx |= kLeaf1EcxHypervisor;
        if (tsc_deadline) entry.ecx |= kLeaf1EcxTscDeadline;
        entry.edx = vcpus > 1 ? entry.edx | kLeaf1EdxHtt : entry.edx & ~kLeaf1EdxHtt;
        break;
      case 0x4:
      case 0x8000001d:
        if ((entry.eax & 0x1f) != 0) SetCacheSharing(entry, vcpus);
        break;
      case 0xa:
        // Architectural performance monitoring: version 0, none.
        entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
        break;
      case 0xb:
      case 0x1f:
        SetExtendedTopology(entry, id, vcpus);
        break;
      case 0x40000001:
        entry.eax &= ~(kKvmAsyncPageFaults | kKvmStealTime);
        break;
      case 0x80000001:
        entry.ecx &= ~(kExtEcxSvm | kExtEcxPerfCounters);
        break;
      case 0x80000008:
        // Number of threads - 1, and the APIC id bits that tell them apart.
        entry.ecx = (entry.ecx & ~0xf0ffu) | (vcpus - 1) | ApicIdBits(vcpus) << 12;
        break;
      case 0x8000000a:
        // Nested SVM: none.
        entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
        break;
      case 0x8000001e:
        entry.eax = id;
        entry.ebx = id;  // One thread a core
        entry.ecx = 0;   // One node
        break;
      default:
        break;
    }
  }
  return table;
}

uint64_t SupportedXcr0(const CpuidTable& supported) {
  bool has_xsave = false;
  uint64_t components = 0;
  for (uint32_t i = 0; i < supported.count; ++i) {
    const kvm_cpuid_entry2& entry = supported.entries[i];
    if (entry.function == 1) has_xsave = (entry.ecx & kLeaf1EcxXsave) != 0;
    if (entry.function == 0xd && entry.index == 0) {
      components = uint64_t{entry.edx} << 32 | entry.eax;
    }
  }
  return has_xsave ? components : 0;
}

}  // namespace forklet
