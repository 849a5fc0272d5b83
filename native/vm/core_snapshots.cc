// The half of Core that makes snapshots, and VMs from them.
#include <thread>
#include <utility>

#include "base/clock.h"
#include "vm/core.h"
#include "vm/core_entries.h"
#include "vm/reaper.h"
#include "vm/snapshot_files.h"

namespace forklet {

namespace {

SnapshotInfo Describe(const VmState& state) {
  SnapshotInfo info;
  info.memory_bytes = state.memory_bytes;
  info.vcpus = static_cast<uint32_t>(state.cpus.size());
  info.connection = state.control_connection;
  info.copied_pages = state.memory->packed_pages();
  info.place = state.place;
  return info;
}

// Lets go of a snapshot. A worker's task may be its last owner, but its release
// takes its time, and may be that of the worker itself.
void Drop(std::shared_ptr<Snapshot> snapshot) {
  // As a rule it is not. Should the others let go at this very moment, the worker
  // takes the time.
  if (snapshot == nullptr || snapshot.use_count() > 1) return;
  Reaper::Submit([snapshot = std::move(snapshot)] {});
}

}  // namespace

// Makes ahead what is missing now that this fork was taken. What fails here, a fork
// that is asked for fails with as well, and says so.
void Core::PostRefill(EventLoop& refills, std::shared_ptr<Snapshot> snapshot,
                      std::shared_ptr<VmEntry> taken) {
  // For so long its user has the processors for himself.
  constexpr std::chrono::milliseconds kDelay{2};
  refills.Post([snapshot = std::move(snapshot), taken = std::move(taken),
                due = DeadlineIn(kDelay)]() mutable {
    if (snapshot->NeedsRefill()) std::this_thread::sleep_until(due);
    if (taken->BeginJob()) {
      if (taken->vm != nullptr) snapshot->Learn(*taken->vm);
      taken->EndJob();
    }
    for (auto more = snapshot->Refill(); more.ok() && more.value(); more = snapshot->Refill()) {
    }
    Drop(std::move(snapshot));
  });
}

std::shared_ptr<Snapshot> Core::FindSnapshot(SnapshotId snapshot) {
  const auto found = snapshots_.find(snapshot);
  if (found == snapshots_.end()) return nullptr;
  std::lock_guard lock(found->second->mutex);
  return found->second->snapshot;
}

std::shared_ptr<Core::SnapshotEntry> Core::AddSnapshot(SnapshotId snapshot) {
  std::erase_if(snapshots_, [](const auto& known) {
    std::lock_guard lock(known.second->mutex);
    return known.second->failed;
  });
  auto entry = std::make_shared<SnapshotEntry>();
  snapshots_[snapshot] = entry;
  return entry;
}

Result<Core::Workers> Core::AcquireWorkers() {
  if (workers_.forks == nullptr) {
    ASSIGN_OR_RETURN(workers_.forks, SharedLoop("forklet-forks"));
  }
  if (workers_.devices == nullptr) {
    ASSIGN_OR_RETURN(workers_.devices, SharedLoop("forklet-devices"));
  }
  if (workers_.refills == nullptr) {
    ASSIGN_OR_RETURN(workers_.refills, SharedLoop("forklet-refill"));
    workers_.refills->Post([] { Thread::MakeBackground(); });
  }
  return workers_;
}

void Core::ReleaseIdleWorkers() {
  if (!snapshots_.empty() || !vms_.empty() || workers_.forks == nullptr) return;
  // Whoever lets go last waits for the thread. Behind the release of the VMs,
  // which waits for the work that these threads have for them.
  Reaper::Submit([workers = std::exchange(workers_, {})] {});
}

struct Core::Frozen {
  std::shared_ptr<Snapshot> snapshot;
  SnapshotInfo info;
};

Result<Core::Frozen> Core::FreezeVm(const VmEntry& entry, Deadline deadline) {
  const uint64_t begin = MonotonicNs();
  uint64_t parked = 0;
  ASSIGN_OR_RETURN(auto state, entry.vm->Freeze(deadline, parked));
  SnapshotInfo info = Describe(*state);
  ASSIGN_OR_RETURN(auto snapshot, Snapshot::Create(entry.kvm_path, std::move(state)));
  info.times = {parked - begin, MonotonicNs() - parked};
  return Frozen{std::move(snapshot), std::move(info)};
}

void Core::SnapshotVm(RequestId request, VmId vm, SnapshotId snapshot, ParkPlace place,
                      uint32_t timeout_ms) {
  const auto entry = Find(vm);
  if (entry == nullptr || !entry->BeginJob()) return FailClosed(request);
  // Before this returns, since the guest may be asked to park right after.
  auto begun = entry->vm->BeginFreeze(place);
  if (!begun.ok()) {
    entry->EndJob();
    return Fail(request, std::move(begun).error());
  }
  auto made = AddSnapshot(snapshot);
  auto freeze = [entry, made, request, sink = sink_,
                 deadline = DeadlineIn(std::chrono::milliseconds(timeout_ms))] {
    auto frozen = FreezeVm(*entry, deadline);
    {
      std::lock_guard lock(made->mutex);
      made->failed = !frozen.ok();
      if (frozen.ok()) made->snapshot = frozen.value().snapshot;
    }
    // What the guest says after that is no part of the snapshot.
    entry->vm->EndFreeze([&] {
      if (frozen.ok()) {
        sink->Deliver(Done{request, std::move(frozen.value().info)});
      } else {
        sink->Deliver(Failed{request, std::move(frozen).error()});
      }
    });
    entry->EndJob();
  };
  auto started = jobs_.Start("forklet-freeze", std::move(freeze));
  if (started.ok()) return;
  entry->vm->EndFreeze([] {});
  entry->EndJob();
  snapshots_.erase(snapshot);
  Fail(request, std::move(started).error());
}

void Core::CancelSnapshot(VmId vm) {
  if (Vm* running = Running(vm)) running->CancelFreeze();
}

std::optional<ForkTimes> Core::ForkSnapshot(RequestId request, SnapshotId snapshot, VmId vm,
                                            PoolUse pool, std::string hostname) {
  const uint64_t epoch_ns = MonotonicNs();
  const auto fail = [&](Error error) {
    Fail(request, std::move(error));
    return std::nullopt;
  };
  auto from = FindSnapshot(snapshot);
  if (from == nullptr) return fail({ErrorCode::kClosed, 0, {}, "the snapshot is closed"});
  auto workers = AcquireWorkers();
  if (!workers.ok()) return fail(std::move(workers).error());
  auto entry = std::make_shared<VmEntry>(from->kvm_path());
  if (!vms_.emplace(vm, entry).second) {
    return fail({ErrorCode::kInternal, 0, {}, "this VM exists already"});
  }
  ForkTimes times;
  const auto hand_over = [&](std::unique_ptr<Vm> made) {
    made->Adopt(vm, workers.value().devices, sink_, std::move(hostname));
    entry->vm = std::move(made);
    PostRefill(*workers.value().refills, std::move(from), entry);
    return times;
  };
  if (pool != PoolUse::kNever) {
    if (auto ready = from->TakeFork()) {
      times.pool = PoolHit::kFork;
      times.shell = times.restored = MonotonicNs() - epoch_ns;
      return hand_over(std::move(ready));
    }
    if (pool == PoolUse::kRequire) {
      vms_.erase(vm);
      return fail({ErrorCode::kLimit,
                   0,
                   {},
                   "no prewarmed fork is ready: prewarm() more of them, or wait for them"});
    }
    auto made = from->ForkShell(epoch_ns, times);
    if (!made.ok()) {
      vms_.erase(vm);
      return fail(std::move(made).error());
    }
    if (made.value() != nullptr) return hand_over(std::move(made).value());
  }
  entry->BeginJob();
  workers.value().forks->Post([entry, from, request, vm, pool, epoch_ns, sink = sink_,
                               refills = workers.value().refills, loop = workers.value().devices,
                               hostname = std::move(hostname)]() mutable {
    ForkTimes times;
    auto forked = from->Fork(pool, epoch_ns, times);
    if (!forked.ok()) {
      sink->Deliver(Failed{request, std::move(forked).error()});
    } else {
      forked.value()->Adopt(vm, std::move(loop), sink, std::move(hostname));
      auto unwanted = entry->Take(std::move(forked).value());
      if (unwanted == nullptr) {
        sink->Deliver(Done{request, times});
      } else {
        sink->Deliver(Failed{request, {ErrorCode::kClosed, 0, {}, "the VM was closed"}});
        Reaper::Submit([vm = std::shared_ptr<Vm>(std::move(unwanted))] {});
      }
    }
    entry->EndJob();
    if (pool != PoolUse::kNever) {
      PostRefill(*refills, std::move(from), std::move(entry));
    } else {
      Drop(std::move(from));
    }
  });
  return std::nullopt;
}

void Core::PrewarmSnapshot(RequestId request, SnapshotId snapshot, uint32_t count) {
  auto from = FindSnapshot(snapshot);
  if (from == nullptr) return Fail(request, {ErrorCode::kClosed, 0, {}, "the snapshot is closed"});
  auto workers = AcquireWorkers();
  if (!workers.ok()) return Fail(request, std::move(workers).error());
  workers.value().refills->Post([from = std::move(from), request, count, sink = sink_]() mutable {
    from->SetForkTarget(count);
    auto more = from->Refill();
    while (more.ok() && more.value()) more = from->Refill();
    if (more.ok()) {
      sink->Deliver(Done{request, {}});
    } else {
      sink->Deliver(Failed{request, std::move(more).error()});
    }
    Drop(std::move(from));
  });
}

void Core::CloseSnapshot(RequestId request, SnapshotId snapshot) {
  const auto found = snapshots_.find(snapshot);
  if (found == snapshots_.end()) {
    sink_->Deliver(Done{request, {}});
    return;
  }
  auto entry = std::move(found->second);
  snapshots_.erase(found);
  Reaper::Submit([entry = std::move(entry), request, sink = sink_]() mutable {
    std::shared_ptr<Snapshot> closed;
    {
      std::lock_guard lock(entry->mutex);
      closed = std::move(entry->snapshot);
    }
    if (closed != nullptr) closed->Close();
    closed.reset();
    sink->Deliver(Done{request, {}});
  });
  ReleaseIdleWorkers();
}

void Core::ResetVm(RequestId request, VmId vm, SnapshotId snapshot) {
  const auto entry = Find(vm);
  auto to = FindSnapshot(snapshot);
  if (to == nullptr) return Fail(request, {ErrorCode::kClosed, 0, {}, "the snapshot is closed"});
  if (entry == nullptr || !entry->BeginJob()) return FailClosed(request);
  const auto state = to->StateToRestore();
  const auto answer = [entry, request, sink = sink_](Status done) {
    if (done.ok()) {
      sink->Deliver(Done{request, {}});
    } else {
      sink->Deliver(Failed{request, std::move(done).error()});
    }
    entry->EndJob();
  };
  auto begun = entry->vm->BeginReset(*state);
  if (!begun.ok()) return answer(std::move(begun));
  // Lifetime of jobs_: the core waits for the entry's jobs, of which this is one.
  entry->vm->TryReset(
      state, [entry, kvm = to->kvm(), state, answer, jobs = &jobs_](std::optional<Status> done) {
        if (done) return answer(std::move(*done));
        auto started = jobs->Start("forklet-reset", [entry, kvm, state, answer] {
          answer(entry->vm->Reset(*kvm, state));
        });
        if (!started.ok()) answer(std::move(started));
      });
}

std::shared_ptr<std::atomic<bool>> Core::AddCancelFlag(RequestId request) {
  std::erase_if(cancel_flags_, [](const auto& known) { return known.second.expired(); });
  auto flag = std::make_shared<std::atomic<bool>>(false);
  cancel_flags_[request] = flag;
  return flag;
}

void Core::CancelRequest(RequestId request) {
  const auto found = cancel_flags_.find(request);
  if (found == cancel_flags_.end()) return;
  if (const auto flag = found->second.lock()) flag->store(true);
}

void Core::SaveSnapshot(RequestId request, SnapshotId snapshot, std::string directory,
                        bool overwrite, Bytes session) {
  auto from = FindSnapshot(snapshot);
  if (from == nullptr) return Fail(request, {ErrorCode::kClosed, 0, {}, "the snapshot is closed"});
  auto save = [from = std::move(from), request, overwrite, sink = sink_,
               cancelled = AddCancelFlag(request), directory = std::move(directory),
               session = std::move(session)]() mutable {
    auto saved = SaveToDirectory(*from, directory, overwrite, std::move(session), *cancelled);
    Drop(std::move(from));
    if (saved.ok()) {
      sink->Deliver(Done{request, {}});
    } else {
      sink->Deliver(Failed{request, std::move(saved).error()});
    }
  };
  auto started = jobs_.Start("forklet-save", std::move(save));
  if (!started.ok()) Fail(request, std::move(started).error());
}

void Core::LoadSnapshot(RequestId request, SnapshotId snapshot, std::string kvm_path,
                        std::string directory, bool verify) {
  auto made = AddSnapshot(snapshot);
  auto load = [made, request, verify, sink = sink_, cancelled = AddCancelFlag(request),
               kvm_path = std::move(kvm_path), directory = std::move(directory)] {
    auto loaded = LoadFromDirectory(kvm_path, directory, verify, *cancelled);
    std::unique_lock lock(made->mutex);
    if (!loaded.ok()) {
      made->failed = true;
      lock.unlock();
      sink->Deliver(Failed{request, std::move(loaded).error()});
      return;
    }
    made->snapshot = std::move(loaded.value().snapshot);
    SnapshotInfo info = Describe(*made->snapshot->state());
    info.session = std::move(loaded.value().session);
    lock.unlock();
    sink->Deliver(Done{request, std::move(info)});
  };
  auto started = jobs_.Start("forklet-load", std::move(load));
  if (started.ok()) return;
  snapshots_.erase(snapshot);
  Fail(request, std::move(started).error());
}

}  // namespace forklet
