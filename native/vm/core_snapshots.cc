// The half of Core that makes snapshots, and VMs from them.
#include <utility>

#include "base/clock.h"
#include "vm/core.h"
#include "vm/core_entries.h"
#include "vm/reaper.h"

namespace forklet {

namespace {

SnapshotInfo Describe(const VmState& state, const FreezeTimes& times) {
  SnapshotInfo info;
  info.memory_bytes = state.memory_bytes;
  info.vcpus = static_cast<uint32_t>(state.cpus.size());
  info.connection = state.control_connection;
  info.copied_pages = state.memory->packed_pages();
  info.place = state.place;
  info.times = times;
  return info;
}

// A snapshot's last owner may be a worker's task, but its release takes its time,
// and may be that of the worker itself.
void Drop(std::shared_ptr<Snapshot> snapshot) {
  if (snapshot == nullptr) return;
  Reaper::Submit([snapshot = std::move(snapshot)] {});
}

// Makes ahead what is missing. What fails here, a fork that is asked for fails
// with as well, and says so.
void PostRefill(EventLoop& refills, std::shared_ptr<Snapshot> snapshot) {
  refills.Post([snapshot = std::move(snapshot)]() mutable {
    for (auto more = snapshot->Refill(); more.ok() && more.value(); more = snapshot->Refill()) {
    }
    Drop(std::move(snapshot));
  });
}

}  // namespace

std::shared_ptr<Snapshot> Core::FindSnapshot(SnapshotId snapshot) {
  const auto found = snapshots_.find(snapshot);
  if (found == snapshots_.end()) return nullptr;
  std::lock_guard lock(found->second->mutex);
  return found->second->snapshot;
}

Result<Core::Workers> Core::AcquireWorkers() {
  if (workers_.forks == nullptr) {
    ASSIGN_OR_RETURN(workers_.forks, SharedLoop("forklet-forks"));
  }
  if (workers_.refills == nullptr) {
    ASSIGN_OR_RETURN(workers_.refills, SharedLoop("forklet-refill"));
  }
  return workers_;
}

void Core::ReleaseIdleWorkers() {
  if (!snapshots_.empty() || !vms_.empty() || workers_.forks == nullptr) return;
  // Whoever lets go last waits for the thread. Behind the release of the VMs,
  // which waits for the work that these threads have for them.
  Reaper::Submit([workers = std::exchange(workers_, {})] {});
}

void Core::SnapshotVm(RequestId request, VmId vm, SnapshotId snapshot, ParkPlace place,
                      uint32_t timeout_ms) {
  const auto entry = Find(vm);
  if (entry == nullptr || !entry->BeginJob()) return FailClosed(request);
  std::erase_if(snapshots_, [](const auto& known) {
    std::lock_guard lock(known.second->mutex);
    return known.second->failed;
  });
  auto made = std::make_shared<SnapshotEntry>();
  snapshots_[snapshot] = made;
  auto freeze = [entry, made, request, place, sink = sink_,
                 deadline = DeadlineIn(std::chrono::milliseconds(timeout_ms))] {
    FreezeTimes times;
    Event answer = Done{request, {}};
    auto state = entry->vm->Freeze(place, deadline, times);
    auto frozen = state.ok() ? Snapshot::Create(entry->kvm_path, state.value())
                             : Result<std::shared_ptr<Snapshot>>(std::move(state).error());
    {
      std::lock_guard lock(made->mutex);
      made->failed = !frozen.ok();
      if (frozen.ok()) made->snapshot = std::move(frozen).value();
    }
    if (made->failed) {
      sink->Deliver(Failed{request, std::move(frozen).error()});
    } else {
      sink->Deliver(Done{request, Describe(*state.value(), times)});
    }
    entry->EndJob();
  };
  auto started = jobs_.Start("forklet-freeze", std::move(freeze));
  if (started.ok()) return;
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
  auto loop = SharedLoop("forklet-devices");
  if (!loop.ok()) return fail(std::move(loop).error());
  auto workers = AcquireWorkers();
  if (!workers.ok()) return fail(std::move(workers).error());
  auto entry = std::make_shared<VmEntry>(from->kvm_path());
  if (!vms_.emplace(vm, entry).second) {
    return fail({ErrorCode::kInternal, 0, {}, "this VM exists already"});
  }
  if (pool != PoolUse::kNever) {
    if (auto ready = from->TakeFork()) {
      ready->Adopt(vm, std::move(loop).value(), sink_, std::move(hostname));
      entry->vm = std::move(ready);
      PostRefill(*workers.value().refills, std::move(from));
      ForkTimes times;
      times.pool = PoolHit::kFork;
      times.shell = times.restored = MonotonicNs() - epoch_ns;
      return times;
    }
    if (pool == PoolUse::kRequire) {
      vms_.erase(vm);
      return fail({ErrorCode::kLimit, 0, {},
                   "no prewarmed fork is ready: prewarm() more of them, or wait for them"});
    }
  }
  entry->BeginJob();
  workers.value().forks->Post([entry, from, request, vm, pool, epoch_ns, sink = sink_,
                               refills = workers.value().refills, loop = std::move(loop).value(),
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
      PostRefill(*refills, std::move(from));
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
  auto reset = [entry, state = to->state(), request, sink = sink_]() mutable {
    // The memory that a fork is mapped from may have been flattened since.
    const auto origin = entry->vm->origin();
    auto done = entry->vm->Reset(std::move(state));
    if (done.ok()) {
      sink->Deliver(Done{request, {}});
    } else {
      sink->Deliver(Failed{request, std::move(done).error()});
    }
    entry->EndJob();
  };
  auto started = jobs_.Start("forklet-reset", std::move(reset));
  if (started.ok()) return;
  entry->EndJob();
  Fail(request, std::move(started).error());
}

}  // namespace forklet
