// What Core keeps of each VM and snapshot. Included by its halves only.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "vm/core.h"

namespace forklet {

// A VM from the request for it to its release.
struct Core::VmEntry {
  explicit VmEntry(std::string path) : kvm_path(std::move(path)) {}

  const std::string kvm_path;
  std::mutex mutex;
  std::condition_variable idle;
  // All below under `mutex`.
  bool cancelled = false;
  int jobs = 0;  // At work on this VM: the release waits for them
  // Lifetime: once set it stays until Release, which the core's thread alone
  // begins, and which waits for the jobs.
  std::unique_ptr<Vm> vm;

  // Announces a job; false when the VM is being released.
  bool BeginJob() {
    std::lock_guard lock(mutex);
    if (cancelled) return false;
    ++jobs;
    return true;
  }
  void EndJob() {
    std::lock_guard lock(mutex);
    --jobs;
    idle.notify_all();
  }

  // Ends what runs, without waiting.
  void Cancel() {
    std::lock_guard lock(mutex);
    cancelled = true;
    if (vm == nullptr) return;
    vm->RequestStop();
    vm->CancelFreeze();
  }

  // Waits for the jobs. Thread: one that may wait.
  void WaitIdle() {
    std::unique_lock lock(mutex);
    idle.wait(lock, [this] { return jobs == 0; });
  }

  // Waits for the jobs, and releases everything. Thread: one that may wait.
  void Release() {
    Cancel();
    WaitIdle();
    vm.reset();
  }

  // Takes a VM that has come up, unless nobody wants it any more; then it is
  // handed back.
  std::unique_ptr<Vm> Take(std::unique_ptr<Vm> made) {
    std::lock_guard lock(mutex);
    if (cancelled) return made;
    vm = std::move(made);
    return nullptr;
  }
};

// A snapshot from the request for it to its release.
struct Core::SnapshotEntry {
  std::mutex mutex;
  bool failed = false;                 // Under `mutex`: it was never made
  std::shared_ptr<Snapshot> snapshot;  // Under `mutex`; null until made
};

// The process's thread of that name; it lives as long as somebody holds it.
Result<std::shared_ptr<EventLoop>> SharedLoop(const std::string& thread_name);

}  // namespace forklet
