#include "vm/probe.h"

#include "arch/x86_64/host_profile.h"
#include "kvm/kvm.h"

namespace forklet {

ProbeReport ProbeKvm(const std::string& kvm_path) {
  ProbeReport report;
  report.backend = "none";
  auto kvm = Kvm::Open(kvm_path);
  if (!kvm.ok()) {
    report.checks.push_back({"kvm device", false, kvm.error().Message(),
                             kvm_path + ", open for reading and writing", kvm.error().detail});
    return report;
  }
  report.backend = BackendName();
  report.checks.push_back({"kvm device", true, kvm_path, kvm_path, {}});

  auto host = ProbeHost(kvm.value());
  if (!host.ok()) {
    report.checks.push_back({"kvm guest", false, host.error().Message(),
                             "a guest of five instructions runs", host.error().detail});
    return report;
  }
  report.quirks = host.value().Quirks();
  report.checks.push_back({"kvm guest",
                           true,
                           "a guest of five instructions ran",
                           "a guest of five instructions runs",
                           {}});
  return report;
}

}  // namespace forklet
