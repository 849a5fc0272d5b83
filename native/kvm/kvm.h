#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "kvm/uapi.h"
#include "kvm/vm_fd.h"

namespace forklet {

// /dev/kvm: the system scope of the KVM API. Thread: any.
class Kvm {
 public:
  // Fails with kKvmUnavailable, naming path, errno and remedy, when the device
  // is missing, not permitted, not KVM, or of another API version.
  static Result<Kvm> Open(const std::string& path);

  // KVM_CREATE_VM.
  Result<VmFd> CreateVm() const;
  // KVM_CHECK_EXTENSION; 0 means absent.
  Result<int> CheckExtension(int capability, const char* name) const;
  // KVM_GET_SUPPORTED_CPUID.
  Result<CpuidTable> GetSupportedCpuid() const;
  // KVM_GET_MSR_INDEX_LIST: the MSRs that KVM saves and restores.
  Result<std::vector<uint32_t>> GetMsrIndexList() const;
  // KVM_GET_VCPU_MMAP_SIZE: size of a vCPU's shared kvm_run, in bytes.
  size_t vcpu_mmap_size() const { return vcpu_mmap_size_; }

 private:
  Kvm(UniqueFd fd, size_t vcpu_mmap_size) : fd_(std::move(fd)), vcpu_mmap_size_(vcpu_mmap_size) {}

  UniqueFd fd_;
  size_t vcpu_mmap_size_;
};

}  // namespace forklet

#define KVM_CHECK(kvm, capability) (kvm).CheckExtension(capability, #capability)
