#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

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
// Owner: Vm. Thread: the methods below from any one thread at a time, but
// RequestStop and the figures, which any thread may call at any time.
class Vcpu {
 public:
  Vcpu(uint32_t id, VcpuFd fd, const VcpuContext& context)
      : id_(id), fd_(std::move(fd)), context_(context) {}
  // Stops the thread if it still runs.
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  // State may be read and set through it while the thread does not run.
  const VcpuFd& fd() const { return fd_; }

  // KVM's statistics of the vCPU; invalid where KVM has none. Thread: any, from
  // Start() on.
  const UniqueFd& stats() const { return stats_; }

  // Creates the thread, which enters the guest.
  Status Start();
  // Makes the thread leave the guest and end; does not wait for it.
  void RequestStop();
  void Join();

  // CPU time of the thread so far, in nanoseconds.
  uint64_t CpuTimeNs() const;
  uint64_t completed_instructions() const {
    return completed_instructions_.load(std::memory_order_relaxed);
  }
  // Adds this vCPU's VM exits to `totals`, by name.
  void AddExits(std::map<std::string, uint64_t>& totals) const;

 private:
  enum class Next : uint8_t { kEnter, kStop };

  void Run();
  void EnterUntilStopped();
  Next HandleError(int error);
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
  std::atomic<bool> stop_ = false;
  uint32_t retries_ = 0;  // Thread: the vCPU's; spurious KVM_RUN failures in a row
  // Thread: written by the vCPU's own thread only.
  std::array<std::atomic<uint64_t>, kExitReasons> exits_ = {};
  std::atomic<uint64_t> completed_instructions_ = 0;

  Thread thread_;  // Thread: touched by the owner; by others only while running_
  mutable std::mutex mutex_;
  bool running_ = false;            // Under mutex_: the thread can be kicked
  uint64_t final_cpu_time_ns_ = 0;  // Under mutex_: once it has ended
};

}  // namespace forklet
