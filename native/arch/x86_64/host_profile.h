#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "kvm/kvm.h"

namespace forklet {

// What kind of KVM this host has: found by running a guest of a few
// instructions, not guessed from names, wherever a probe can tell.
struct HostProfile {
  // Quirk: the guest sees the host's CPUID whatever KVM_SET_CPUID2 said, so
  // that features can only be hidden on the guest kernel's command line.
  bool cpuid_unmasked = false;
  // Quirk: guest kernel mode runs in KVM's instruction emulator, slowly and
  // without some instructions, which the run loop then completes.
  bool emulated_supervisor = false;
  // Quirk: KVM keeps translations of its own of the guest's page tables, since the
  // processor's nested ones (EPT, NPT) are missing or turned off. A page table that
  // changes behind its back, as by a reset, leaves it with wrong ones.
  bool shadow_paging = false;
  // Quirk: the guest's TSC is the host's, whatever is written to it.
  bool host_tsc = false;
  // Quirk: the guest's XSETBV goes past KVM, which puts XCR0 back to what it
  // knows at the next VM exit; the guest then saves and restores less of its
  // vector registers than it believes. QEMU's emulation of SVM, which does not
  // intercept XSETBV, makes it so.
  bool xsetbv_unseen = false;

  bool tsc_deadline = false;  // The local APIC has a TSC-deadline timer
  bool exit_on_emulation_failure = false;
  bool statistics = false;  // KVM_GET_STATS_FD works
  uint32_t tsc_khz = 0;     // Rate of a guest's TSC; 0: unknown
  size_t xsave_bytes = kLegacyXsaveBytes;
  CpuidTable cpuid;            // What KVM supports
  std::vector<uint32_t> msrs;  // What a snapshot keeps: see ProbeMsrs

  // The names of the quirks that are on, for people.
  std::vector<std::string> Quirks() const;
};

// Probes through `kvm`; about a millisecond. Fails with kKvmUnavailable when a
// capability that we cannot do without is missing, naming it, or when the probe
// guest does not run.
Result<HostProfile> ProbeHost(const Kvm& kvm);

// The same, but only once for each path in this process.
Result<std::shared_ptr<const HostProfile>> CachedHostProfile(const std::string& path,
                                                             const Kvm& kvm);

// "vmx", "svm", "pvm" or "unknown": which KVM module serves the host, for
// people only.
std::string BackendName();

}  // namespace forklet
