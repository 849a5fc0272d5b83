#include "vm/probe.h"

#include "arch/x86_64/host_profile.h"
#include "kvm/kvm.h"

namespace forklet {

namespace {
// What was found at `path`, without the advice, which has a column of its own:
// an error with an errno says it by that.
std::string Found(const std::string& path, Error error) {
  if (error.sys_errno == 0) return error.detail;
  error.detail.clear();
  return path + ": " + error.Message();
}
}  // namespace

ProbeReport ProbeKvm(const std::string& kvm_path) {
  ProbeReport report;
  report.backend = "none";
  auto kvm = Kvm::Open(kvm_path);
  if (!kvm.ok()) {
    report.checks.push_back({"kvm device", false, Found(kvm_path, kvm.error()),
                             kvm_path + ", open for reading and writing", kvm.error().detail});
    return report;
  }
  report.backend = BackendName();
  report.checks.push_back({"kvm device", true, kvm_path, kvm_path, {}});

  auto host = ProbeHost(kvm.value());
  if (!host.ok()) {
    report.checks.push_back({"kvm guest", false, Found(kvm_path, host.error()),
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
