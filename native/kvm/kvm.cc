#include "kvm/kvm.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "kvm/ioctl.h"

namespace forklet {

namespace {

// What a person can do about an errno of open("/dev/kvm").
std::string OpenRemedy(const std::string& path, int error) {
  switch (error) {
    case ENOENT:
      return path +
             " does not exist: enable virtualization in the firmware (or nested virtualization in "
             "the cloud), and load the module: `modprobe kvm_intel` or `modprobe kvm_amd`; in a "
             "container, pass the device in: `--device " +
             path + "`";
    case EACCES:
    case EPERM:
      return "this user may not open " + path +
             ": add it to the group that owns the device: `sudo usermod -aG kvm $USER`, then log "
             "in again; in a container, also pass the device in: `--device " +
             path + "`";
    case ENXIO:
    case ENODEV:
      return path +
             " exists but no KVM module serves it: load `kvm_intel` or `kvm_amd`, and see `dmesg` "
             "for why it is not loaded";
    default:
      return "cannot open " + path;
  }
}

}  // namespace

Result<Kvm> Kvm::Open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    const int saved = errno;
    return Error{ErrorCode::kKvmUnavailable, saved, "open", OpenRemedy(path, saved)};
  }
  const int version = ::ioctl(fd.get(), KVM_GET_API_VERSION, 0ul);
  if (version < 0) {
    const int saved = errno;
    return Error{ErrorCode::kKvmUnavailable, saved, "KVM_GET_API_VERSION",
                 path + " is not a KVM device"};
  }
  if (version != KVM_API_VERSION) {
    return Error{ErrorCode::kKvmUnavailable, 0, "KVM_GET_API_VERSION",
                 path + " speaks KVM API version " + std::to_string(version) + ", not " +
                     std::to_string(KVM_API_VERSION)};
  }
  auto size = KVM_IOCTL(fd, KVM_GET_VCPU_MMAP_SIZE, 0ul);
  if (!size.ok()) return std::move(size).error();
  if (static_cast<size_t>(size.value()) < sizeof(kvm_run)) {
    return Error{ErrorCode::kKvmUnavailable, 0, "KVM_GET_VCPU_MMAP_SIZE",
                 path + " reports a vCPU area of " + std::to_string(size.value()) + " bytes"};
  }
  return Kvm(std::move(fd), static_cast<size_t>(size.value()));
}

Result<VmFd> Kvm::CreateVm() const {
  // KVM_CREATE_VM can fail with EINTR under load with no signal pending; a
  // failed attempt leaves nothing behind, so a few retries are safe.
  constexpr int kMaxAttempts = 5;
  for (int attempt = 1;; ++attempt) {
    auto fd = KVM_IOCTL(fd_, KVM_CREATE_VM, 0ul);
    if (fd.ok()) return VmFd(UniqueFd(fd.value()));
    if (fd.error().sys_errno != EINTR || attempt == kMaxAttempts) return std::move(fd).error();
  }
}

Result<int> Kvm::CheckExtension(int capability, const char* name) const {
  return KVM_IOCTL(fd_, KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability), name);
}

Result<CpuidTable> Kvm::GetSupportedCpuid() const {
  CpuidTable table;
  TRY(Ioctl(fd_, kGetSupportedCpuid, "KVM_GET_SUPPORTED_CPUID", &table));
  if (table.count > CpuidTable::kCapacity) {
    return Error{ErrorCode::kKvm, 0, "KVM_GET_SUPPORTED_CPUID",
                 std::to_string(table.count) + " entries"};
  }
  return table;
}

Result<std::vector<uint32_t>> Kvm::GetMsrIndexList() const {
  MsrIndexTable table;
  table.count = MsrIndexTable::kCapacity;
  TRY(Ioctl(fd_, kGetMsrIndexList, "KVM_GET_MSR_INDEX_LIST", &table));
  if (table.count > MsrIndexTable::kCapacity) {
    return Error{ErrorCode::kKvm, 0, "KVM_GET_MSR_INDEX_LIST",
                 std::to_string(table.count) + " MSRs"};
  }
  return std::vector<uint32_t>(table.indices, table.indices + table.count);
}

}  // namespace forklet
