#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arch/x86_64/host_profile.h"
#include "base/event_loop.h"
#include "base/result.h"
#include "kvm/kvm.h"
#include "vm/messages.h"
#include "vm/vm.h"
#include "vm/vm_state.h"

namespace forklet {

// A frozen VM that forks are made of, and what was made of it ahead of need:
// empty VMs of its size (shells), and forks that are restored and wait.
//
// Owner: Core's table, and whatever job is at work on it. Thread: any, but Fork
// and Refill on threads that may take a millisecond.
class Snapshot {
 public:
  // Shells that are kept while forks are made one after the other.
  static constexpr size_t kShells = 2;

  static Result<std::shared_ptr<Snapshot>> Create(const std::string& kvm_path,
                                                  std::shared_ptr<const VmState> state);
  ~Snapshot();
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  const std::shared_ptr<const VmState>& state() const { return state_; }
  const std::string& kvm_path() const { return kvm_path_; }
  const std::shared_ptr<const Kvm>& kvm() const { return kvm_; }

  // The same to restore from: with its memory flattened once that has paid.
  std::shared_ptr<const VmState> StateToRestore();

  // A restored fork that waits, or nullptr.
  std::unique_ptr<Vm> TakeFork();
  // A fork that is made of a shell which has its memory, or nullptr when there is
  // none: some 100 us of requests, none of which waits.
  Result<std::unique_ptr<Vm>> ForkShell(uint64_t epoch_ns, ForkTimes& times);
  // A fork made now, from a shell where there is one and `pool` allows it. Fills
  // in the times relative to `epoch_ns`.
  Result<std::unique_ptr<Vm>> Fork(PoolUse pool, uint64_t epoch_ns, ForkTimes& times);

  // Learns from a fork that has worked for a moment which pages all of them will
  // write first: those that are made ahead get theirs before.
  void Learn(const Vm& fork);

  // How many forks are to wait, from now on.
  void SetForkTarget(size_t count);
  bool NeedsRefill();
  // Makes one of what is missing, forks first. False when nothing is (any more).
  Result<bool> Refill();
  // Drops what was made ahead; nothing more is. Thread: one that may wait.
  void Close();

 private:
  Snapshot(std::string kvm_path, Kvm kvm, std::shared_ptr<const HostProfile> host,
           std::shared_ptr<const VmState> state)
      : kvm_path_(std::move(kvm_path)),
        kvm_(std::make_shared<const Kvm>(std::move(kvm))),
        host_(std::move(host)),
        state_(std::move(state)) {}

  Result<std::unique_ptr<Vm>> CreateShell();

  const std::string kvm_path_;
  const std::shared_ptr<const Kvm> kvm_;
  const std::shared_ptr<const HostProfile> host_;
  const std::shared_ptr<const VmState> state_;

  std::mutex mutex_;
  // All below under mutex_.
  bool closed_ = false;
  std::vector<std::unique_ptr<Vm>> forks_;
  std::vector<std::unique_ptr<Vm>> shells_;
  size_t fork_target_ = 0;
  size_t shell_target_ = 0;
  uint64_t forked_ = 0;                        // Forks so far
  std::shared_ptr<const VmState> flat_state_;  // Null until flattened
  std::vector<PageRun> working_set_;           // Empty until learnt
  int lessons_ = 0;                            // Forks that were looked at
};

}  // namespace forklet
