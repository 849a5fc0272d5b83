#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/event_loop.h"
#include "vm/jobs.h"
#include "vm/messages.h"
#include "vm/snapshot.h"
#include "vm/vm.h"

namespace forklet {

// The core of the library: takes requests, answers with events. Knows nothing
// of JavaScript.
//
// Owner: one a binding's environment. Thread: the owner's; no method waits,
// but for the two that end everything.
class Core {
 public:
  explicit Core(std::shared_ptr<EventSink> sink) : sink_(std::move(sink)) {}
  // Requires that one of the two below came before, unless nothing is left.
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // Boots a VM. Done with BootTimes, or Failed with nothing left.
  void CreateVm(RequestId request, VmId vm, VmConfig config);
  // Stops and releases a VM in any state, mid-boot included. Done follows after
  // the release, and no other event of this VM.
  void CloseVm(RequestId request, VmId vm);
  // Done with VmStats.
  void Stats(RequestId request, VmId vm);
  // Done with ProbeReport.
  void Probe(RequestId request, std::string kvm_path);
  // Done once all vCPUs stand still, or run again.
  void PauseVm(RequestId request, VmId vm);
  void ResumeVm(RequestId request, VmId vm);

  // Freezes a VM as soon as it stands parked. Done with SnapshotInfo; the VM goes
  // on either way.
  void SnapshotVm(RequestId request, VmId vm, SnapshotId snapshot, ParkPlace place,
                  uint32_t timeout_ms);
  // Gives up a SnapshotVm that is not done yet: it fails with kCancelled.
  void CancelSnapshot(VmId vm);
  // Makes a VM from a snapshot, restored and not entered. Returns its times at
  // once when a prewarmed fork was there; otherwise Done with ForkTimes, or
  // Failed with nothing left, follows.
  std::optional<ForkTimes> ForkSnapshot(RequestId request, SnapshotId snapshot, VmId vm,
                                        PoolUse pool, std::string hostname);
  // Keeps so many forks ready. Done when they are.
  void PrewarmSnapshot(RequestId request, SnapshotId snapshot, uint32_t count);
  // Releases a snapshot; its forks live on. Done after that.
  void CloseSnapshot(RequestId request, SnapshotId snapshot);
  // Puts a VM back to a snapshot of its size, not entered. Done after that.
  void ResetVm(RequestId request, VmId vm, SnapshotId snapshot);

  // Writes a snapshot to a directory. Done after that; Failed leaves what was
  // there before.
  void SaveSnapshot(RequestId request, SnapshotId snapshot, std::string directory, bool overwrite,
                    Bytes session);
  // Done with SnapshotInfo, session included.
  void LoadSnapshot(RequestId request, SnapshotId snapshot, std::string kvm_path,
                    std::string directory, bool verify);
  // Ends one of the two early: it fails with kCancelled, unless it is done first.
  void CancelRequest(RequestId request);

  // Done with Bytes: see Vm::CallProgram.
  void CallProgram(RequestId request, VmId vm, Bytes input, uint64_t max_bytes);

  // The methods below do nothing when the VM or the connection is gone, which it
  // can be at any moment.
  void CancelCall(RequestId request, VmId vm);
  void YieldProgram(VmId vm);
  void EnterVm(VmId vm);
  void Send(VmId vm, uint64_t connection, Bytes data);
  void Consume(VmId vm, uint64_t connection, uint64_t bytes);
  void Disconnect(VmId vm, uint64_t connection);

  // Ends and releases everything, and waits for it.
  void CloseAll();
  // For a process that is about to end: stops every thread of ours and waits
  // for that; memory and descriptors are left to the kernel.
  void StopAll();

 private:
  struct VmEntry;
  struct SnapshotEntry;
  struct Frozen;
  // The threads that forks need, which take less than starting one: for those that
  // somebody waits for, for those that are made ahead, and for the devices of all.
  // They exist while there is a snapshot.
  struct Workers {
    std::shared_ptr<EventLoop> forks;
    std::shared_ptr<EventLoop> refills;
    std::shared_ptr<EventLoop> devices;
  };

  // The entry of a VM that has come up, or nullptr.
  std::shared_ptr<VmEntry> Find(VmId vm);
  // The VM itself. Lifetime: see VmEntry::vm.
  Vm* Running(VmId vm);
  // The snapshot, or nullptr when it is closed or was never made.
  std::shared_ptr<Snapshot> FindSnapshot(SnapshotId snapshot);
  // Room for a snapshot that is about to be made; forgets those that were not.
  std::shared_ptr<SnapshotEntry> AddSnapshot(SnapshotId snapshot);
  // Waits for a freeze that has begun, and leaves the VM frozen. Thread: a job's.
  static Result<Frozen> FreezeVm(const VmEntry& entry, Deadline deadline);
  Result<Workers> AcquireWorkers();
  static void PostRefill(EventLoop& refills, std::shared_ptr<Snapshot> snapshot,
                         std::shared_ptr<VmEntry> taken);
  void ReleaseIdleWorkers();
  void Fail(RequestId request, Error error);
  void FailClosed(RequestId request);
  // The flag of a request that can be ended early.
  std::shared_ptr<std::atomic<bool>> AddCancelFlag(RequestId request);
  // Ends what runs, without waiting.
  void CancelAll();

  const std::shared_ptr<EventSink> sink_;
  std::map<VmId, std::shared_ptr<VmEntry>> vms_;
  std::map<SnapshotId, std::shared_ptr<SnapshotEntry>> snapshots_;
  // Of saves and loads that may still be under way.
  std::map<RequestId, std::weak_ptr<std::atomic<bool>>> cancel_flags_;
  Workers workers_;  // Null while there is nothing to do for them
  Jobs jobs_;
};

}  // namespace forklet
