#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "base/thread.h"
#include "devices/bus.h"
#include "kvm/vcpu_fd.h"
#include "memory/guest_memory.h"
#include "vm/messages.h"

namespace forklet {

// What a vCPU reports to its VM. Thread: the vCPU's.
class VcpuObserver {
 public:
  virtual ~VcpuObserver() = default;
  // The guest cannot go on. The vCPU's thread ends after this.
  virtual void OnVcpuExit(ExitReason reason, std::string detail) = 0;
};

// What all vCPUs of a VM share. Lifetime: everything outlives the vCPUs.
struct VcpuContext {
  const GuestMemory* memory;
  Bus* mmio;
  Bus* ports;
  VcpuObserver* observer;
  size_t xsave_bytes;
};

// A vCPU and its thread: enters the guest and answers its VM exits.
//
// It stands still until it is released. The thread is made at the first release, or
// ahead of it, and is the only one that ever calls KVM_RUN.
//
// Owner: Vm. Thread: any.
class Vcpu {
 public:
  Vcpu(uint32_t id, VcpuFd fd, const VcpuContext& context)
      : id_(id), fd_(std::move(fd)), context_(context) {}
  // Stops the thread if it still runs.
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  // State may be read and set through it while the vCPU stands still.
  const VcpuFd& fd() const { return fd_; }

  // KVM's statistics of the vCPU; invalid where KVM has none, and before the
  // first release.
  const UniqueFd& stats() const { return stats_; }

  // Makes the thread ahead of the first release, and has KVM make what it enters the
  // guest with: its page tables, a kernel thread of the VM. That is two fifths of a
  // short first run, and no instruction of the guest. WaitHeld() tells when it is
  // done.
  Status Prepare();
  // Lets the vCPU enter the guest; creates its thread when there is none.
  Status Release();
  // Makes the vCPU leave the guest and stand still, with no access to a device
  // left half done. Does not wait; may come from the vCPU's own thread.
  void RequestHold();
  // Waits until it stands still, or has ended; false when that takes too long,
  // as it does for a guest inside an endless string instruction. Not on the
  // vCPU's own thread.
  [[nodiscard]] bool WaitHeld(Deadline deadline);
  // Makes the thread leave the guest and end; does not wait for it.
  void RequestStop();
  void Join();

  // Whether the caller runs on this vCPU's thread.
  bool IsCurrent() const;
  // CPU time of the thread so far, in nanoseconds.
  uint64_t CpuTimeNs() const;
  uint64_t completed_instructions() const {
    return completed_instructions_.load(std::memory_order_relaxed);
  }
  // Whether code of the guest's kernel may have run on it, on a host where KVM
  // emulates that: then every such instruction is counted, and of user mode's
  // nothing is but what accesses a device.
  bool MayHaveRunKernel() const;
  // Adds this vCPU's VM exits to `totals`, by name.
  void AddExits(std::map<std::string, uint64_t>& totals) const;

 private:
  enum class Next : uint8_t { kEnter, kStop };
  enum class Mode : uint8_t { kRun, kHold, kStop };

  // Under mutex_.
  Status StartThread();
  void Run();
  void RunUntilStopped();
  // KVM_RUN, which turns back where it would enter the guest.
  int RunToEntry();
  // Waits while the vCPU is held, but not before KVM has taken the answer to its
  // last access. False when it is to stop.
  bool StandStill();
  // Leaves kRun. Under mutex_.
  void Interrupt(Mode mode);
  Next HandleError(int error);
  Next ExitWithoutMemory();
  Next HandleExit();
  Next HandlePort();
  Next HandleMmio();
  Next HandleInternalError();
  Next Exit(ExitReason reason, std::string detail);
  // " at RIP 0x..., CPL 3", for error texts.
  std::string Where() const;

  // Exit reasons above this are counted as one.
  static constexpr size_t kExitReasons = 48;

  const uint32_t id_;
  const VcpuFd fd_;
  const VcpuContext context_;
  UniqueFd stats_;
  // mode_ is not kRun: looked at before each entry.
  std::atomic<bool> attention_ = true;
  // Thread: the vCPU's for the three below, once it exists.
  bool access_pending_ = false;  // KVM has yet to take the answer to a port or MMIO access
  bool approach_ = false;        // The next KVM_RUN is not to enter the guest
  uint32_t retries_ = 0;         // Spurious KVM_RUN failures in a row
  // Thread: written by the vCPU's own thread only.
  std::array<std::atomic<uint64_t>, kExitReasons> exits_ = {};
  std::atomic<uint64_t> completed_instructions_ = 0;

  Thread thread_;  // Thread: touched under mutex_; joined by the owner
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // mode_, held_ or running_
  Mode mode_ = Mode::kHold;          // Under mutex_
  bool held_ = false;                // Under mutex_: the thread waits in StandStill
  bool running_ = false;             // Under mutex_: there is a thread that can be kicked
  uint64_t final_cpu_time_ns_ = 0;   // Under mutex_: once it has ended
};

}  // namespace forklet
