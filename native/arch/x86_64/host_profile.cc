#include "arch/x86_64/host_profile.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>

#include "arch/x86_64/cpuid.h"
#include "arch/x86_64/layout.h"
#include "arch/x86_64/msrs.h"
#include "base/mapping.h"

namespace forklet {

namespace {

constexpr uint32_t kLeaf1EcxXsave = 1u << 26;
constexpr uint32_t kLeaf1EcxOsxsave = 1u << 27;
constexpr uint64_t kCr4Osxsave = 1u << 18;

constexpr GuestAddress kProbeCode{0x1000};
constexpr GuestAddress kProbeResult{0x2000};
constexpr GuestAddress kXsetbvCode{0x3000};
constexpr size_t kProbeMemoryBytes = 0x4000;

// Real mode: stores ECX of CPUID leaf 1, then executes one instruction that
// KVM's emulator does not know, then halts.
constexpr uint8_t kProbeProgram[] = {
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x00,  // mov eax, 1
    0x0f, 0xa2,                          // cpuid
    0x66, 0x89, 0x0e, 0x00, 0x20,        // mov [0x2000], ecx
    0xf3, 0x0f, 0xb8, 0xc3,              // popcnt ax, bx
    0xf4,                                // hlt
};

// Real mode: XCR0 = x87 and SSE, which every processor with XSAVE has; the reset
// value is x87 alone.
constexpr uint64_t kXsetbvValue = 3;
constexpr uint8_t kXsetbvProgram[] = {
    0x66, 0xb8, kXsetbvValue, 0x00, 0x00, 0x00,  // mov eax, 3
    0x66, 0x31, 0xd2,                            // xor edx, edx
    0x66, 0x31, 0xc9,                            // xor ecx, ecx
    0x0f, 0x01, 0xd1,                            // xsetbv
    0xf4,                                        // hlt
};

Error ProbeFailed(std::string detail) {
  return Error{ErrorCode::kKvmUnavailable, 0, "KVM_RUN",
               "a guest of five instructions does not run on this host: " + std::move(detail)};
}

struct RequiredCapability {
  int number;
  const char* name;
};
constexpr RequiredCapability kRequired[] = {
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
    {KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
    {KVM_CAP_XCRS, "KVM_CAP_XCRS"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
};

// A vCPU that is about to execute what lies at `code`, in real mode.
Result<VcpuFd> CreateProbeVcpu(const Kvm& kvm, const VmFd& vm, uint32_t id, const CpuidTable& cpuid,
                               GuestAddress code, uint64_t cr4) {
  ASSIGN_OR_RETURN(VcpuFd vcpu, vm.CreateVcpu(id, kvm.vcpu_mmap_size()));
  TRY(vcpu.SetCpuid(cpuid));
  ASSIGN_OR_RETURN(kvm_sregs sregs, vcpu.GetSregs());
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  sregs.cr4 |= cr4;
  TRY(vcpu.SetSregs(sregs));
  kvm_regs regs = {};
  regs.rflags = 2;
  regs.rip = code.value;
  TRY(vcpu.SetRegs(regs));
  return vcpu;
}

// Runs to the first VM exit that is none of a signal's; the exit is in the
// vCPU's shared area.
Status RunProbe(const VcpuFd& vcpu) {
  constexpr int kMaxAttempts = 100;  // A signal may interrupt; the program itself never loops
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    const int error = vcpu.Run();
    if (error == EINTR || error == EAGAIN) continue;
    if (error != 0) return Error{ErrorCode::kKvmUnavailable, error, "KVM_RUN", {}};
    if (vcpu.shared().exit_reason != KVM_EXIT_INTR) return Ok();
  }
  return ProbeFailed("interrupted again and again");
}

Status ProbeTsc(const VcpuFd& vcpu, HostProfile& profile) {
  // Far from what KVM takes for an attempt to bring two vCPUs together.
  constexpr uint64_t kFarAhead = uint64_t{1} << 42;
  ASSIGN_OR_RETURN(const uint64_t before, vcpu.GetMsr(kMsrTsc));
  kvm_msr_entry entry = {};
  entry.index = kMsrTsc;
  entry.data = before + kFarAhead;
  TRY(vcpu.SetMsrs({&entry, 1}));
  const uint64_t earliest = __rdtsc();
  ASSIGN_OR_RETURN(const uint64_t after, vcpu.GetMsr(kMsrTsc));
  const uint64_t latest = __rdtsc();
  profile.host_tsc = earliest <= after && after <= latest;
  return Ok();
}

Status ProbeInstructions(const Kvm& kvm, const VmFd& vm, const Mapping& memory,
                         HostProfile& profile) {
  CpuidTable masked = profile.cpuid;
  for (uint32_t i = 0; i < masked.count; ++i) {
    if (masked.entries[i].function == 1) {
      masked.entries[i].ecx &= ~(kLeaf1EcxXsave | kLeaf1EcxOsxsave);
    }
  }
  ASSIGN_OR_RETURN(const VcpuFd vcpu, CreateProbeVcpu(kvm, vm, 0, masked, kProbeCode, 0));
  profile.tsc_khz = vcpu.GetTscKhz();
  TRY(ProbeTsc(vcpu, profile));
  TRY(RunProbe(vcpu));
  const kvm_run& run = vcpu.shared();
  if (run.exit_reason == KVM_EXIT_INTERNAL_ERROR) {
    if (run.internal.suberror != KVM_INTERNAL_ERROR_EMULATION) {
      return ProbeFailed("internal error " + std::to_string(run.internal.suberror));
    }
    profile.emulated_supervisor = true;
  } else if (run.exit_reason != KVM_EXIT_HLT) {
    return ProbeFailed("exit reason " + std::to_string(run.exit_reason));
  }
  uint32_t ecx = 0;
  std::memcpy(&ecx, memory.data() + kProbeResult.value, sizeof ecx);
  profile.cpuid_unmasked = (ecx & kLeaf1EcxXsave) != 0;
  return Ok();
}

// A host without XSAVE, or whose emulator does not know XSETBV, lacks the quirk.
Status ProbeXsetbv(const Kvm& kvm, const VmFd& vm, HostProfile& profile) {
  if (SupportedXcr0(profile.cpuid) == 0) return Ok();
  ASSIGN_OR_RETURN(const VcpuFd vcpu,
                   CreateProbeVcpu(kvm, vm, 1, profile.cpuid, kXsetbvCode, kCr4Osxsave));
  TRY(RunProbe(vcpu));
  if (vcpu.shared().exit_reason != KVM_EXIT_HLT) return Ok();
  ASSIGN_OR_RETURN(const kvm_xcrs xcrs, vcpu.GetXcrs());
  profile.xsetbv_unseen = xcrs.nr_xcrs > 0 && xcrs.xcrs[0].value != kXsetbvValue;
  return Ok();
}

Status RunProbeGuest(const Kvm& kvm, HostProfile& profile) {
  ASSIGN_OR_RETURN(Mapping memory,
                   Mapping::Create(UniqueFd(), kProbeMemoryBytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, 0));
  std::memcpy(memory.data() + kProbeCode.value, kProbeProgram, sizeof kProbeProgram);
  std::memcpy(memory.data() + kXsetbvCode.value, kXsetbvProgram, sizeof kXsetbvProgram);
  // Teardown: the VM goes before the memory that its slot points to.
  ASSIGN_OR_RETURN(const VmFd vm, kvm.CreateVm());
  TRY(vm.SetRealModeAreas(layout::kTss, layout::kIdentityMap));
  TRY(vm.SetMemoryRegion(0, GuestAddress{0}, memory.size(), memory.data()));
  TRY(ProbeInstructions(kvm, vm, memory, profile));
  return ProbeXsetbv(kvm, vm, profile);
}

bool ModuleLoaded(const char* name) {
  return ::access((std::string("/sys/module/") + name).c_str(), F_OK) == 0;
}

// No guest can tell; KVM's modules do. Without them, the worse of the two.
bool ShadowsPageTables() {
  for (const char* path :
       {"/sys/module/kvm_intel/parameters/ept", "/sys/module/kvm_amd/parameters/npt"}) {
    const UniqueFd parameter(::open(path, O_RDONLY | O_CLOEXEC));
    char value = 0;
    if (parameter && ::read(parameter.get(), &value, 1) == 1 && (value == 'Y' || value == '1')) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::vector<std::string> HostProfile::Quirks() const {
  std::vector<std::string> names;
  if (cpuid_unmasked) names.emplace_back("cpuid-unmasked");
  if (emulated_supervisor) names.emplace_back("emulated-supervisor");
  if (shadow_paging) names.emplace_back("shadow-paging");
  if (host_tsc) names.emplace_back("host-tsc");
  if (xsetbv_unseen) names.emplace_back("xsetbv-unseen");
  return names;
}

Result<HostProfile> ProbeHost(const Kvm& kvm) {
  for (const RequiredCapability& capability : kRequired) {
    ASSIGN_OR_RETURN(const int present, kvm.CheckExtension(capability.number, capability.name));
    if (present == 0) {
      return Error{ErrorCode::kKvmUnavailable, 0, "KVM_CHECK_EXTENSION",
                   std::string("this KVM lacks ") + capability.name +
                       "; a Linux kernel from 4.14 on has it"};
    }
  }
  HostProfile profile;
  ASSIGN_OR_RETURN(const int deadline, KVM_CHECK(kvm, KVM_CAP_TSC_DEADLINE_TIMER));
  profile.tsc_deadline = deadline != 0;
  ASSIGN_OR_RETURN(const int emulation, KVM_CHECK(kvm, KVM_CAP_EXIT_ON_EMULATION_FAILURE));
  profile.exit_on_emulation_failure = emulation != 0;
  ASSIGN_OR_RETURN(const int statistics, KVM_CHECK(kvm, KVM_CAP_BINARY_STATS_FD));
  profile.statistics = statistics != 0;
  ASSIGN_OR_RETURN(const int xsave, KVM_CHECK(kvm, KVM_CAP_XSAVE2));
  if (static_cast<size_t>(xsave) > kLegacyXsaveBytes) {
    profile.xsave_bytes = static_cast<size_t>(xsave);
  }
  ASSIGN_OR_RETURN(profile.cpuid, kvm.GetSupportedCpuid());
  TRY(RunProbeGuest(kvm, profile));
  profile.shadow_paging = profile.emulated_supervisor || ShadowsPageTables();
  ASSIGN_OR_RETURN(profile.msrs, ProbeMsrs(kvm, profile.cpuid));
  return profile;
}

Result<std::shared_ptr<const HostProfile>> CachedHostProfile(const std::string& path,
                                                             const Kvm& kvm) {
  // Never destroyed: threads may outlive static destructors at process exit.
  static auto& mutex = *new std::mutex;
  static auto& profiles = *new std::map<std::string, std::shared_ptr<const HostProfile>>;
  {
    std::lock_guard lock(mutex);
    const auto found = profiles.find(path);
    if (found != profiles.end()) return found->second;
  }
  ASSIGN_OR_RETURN(HostProfile probed, ProbeHost(kvm));
  auto profile = std::make_shared<const HostProfile>(std::move(probed));
  std::lock_guard lock(mutex);
  return profiles.emplace(path, std::move(profile)).first->second;
}

std::string BackendName() {
  if (ModuleLoaded("kvm_intel")) return "vmx";
  if (ModuleLoaded("kvm_amd")) return "svm";
  if (ModuleLoaded("kvm_pvm")) return "pvm";
  return "unknown";
}

}  // namespace forklet
