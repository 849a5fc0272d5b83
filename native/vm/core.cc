#include "vm/core.h"

#include <utility>

#include "base/clock.h"
#include "vm/core_entries.h"
#include "vm/probe.h"
#include "vm/reaper.h"

namespace forklet {

namespace {
constexpr std::chrono::seconds kPauseTime{5};
}  // namespace

Result<std::shared_ptr<EventLoop>> SharedLoop(const std::string& thread_name) {
  // Never destroyed: threads may outlive static destructors at process exit.
  static auto& mutex = *new std::mutex;
  static auto& shared = *new std::map<std::string, std::weak_ptr<EventLoop>>;
  std::lock_guard lock(mutex);
  if (auto loop = shared[thread_name].lock()) return loop;
  ASSIGN_OR_RETURN(std::shared_ptr<EventLoop> loop, EventLoop::Create(thread_name));
  shared[thread_name] = loop;
  return loop;
}

Core::~Core() { CHECK(vms_.empty() && snapshots_.empty()); }

void Core::Fail(RequestId request, Error error) {
  sink_->Deliver(Failed{request, std::move(error)});
}

void Core::FailClosed(RequestId request) {
  Fail(request, Error{ErrorCode::kClosed, 0, {}, "the VM does not run"});
}

namespace {

Result<std::unique_ptr<Vm>> BootVm(VmId id, const VmConfig& config, std::shared_ptr<EventSink> sink,
                                   uint64_t epoch_ns, BootTimes& times) {
  times.started = MonotonicNs() - epoch_ns;
  ASSIGN_OR_RETURN(std::shared_ptr<EventLoop> loop, SharedLoop("forklet-devices"));
  ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm,
                   Vm::Boot(id, config, std::move(loop), std::move(sink), epoch_ns, times));
  times.entered = MonotonicNs() - epoch_ns;
  TRY(vm->Enter());
  return vm;
}

}  // namespace

void Core::CreateVm(RequestId request, VmId vm, VmConfig config) {
  const uint64_t epoch_ns = MonotonicNs();
  auto entry = std::make_shared<VmEntry>(config.kvm_path);
  if (!vms_.emplace(vm, entry).second) {
    return Fail(request, Error{ErrorCode::kInternal, 0, {}, "this VM exists already"});
  }
  entry->BeginJob();
  auto boot = [entry, request, vm, config = std::move(config), sink = sink_, epoch_ns] {
    BootTimes times;
    auto booted = BootVm(vm, config, sink, epoch_ns, times);
    if (!booted.ok()) {
      sink->Deliver(Failed{request, std::move(booted).error()});
    } else if (entry->Take(std::move(booted).value()) != nullptr) {
      sink->Deliver(Failed{request, {ErrorCode::kClosed, 0, {}, "the VM was closed"}});
    } else {
      sink->Deliver(Done{request, times});
    }
    entry->EndJob();
  };
  auto started = jobs_.Start("forklet-boot", std::move(boot));
  if (started.ok()) return;
  vms_.erase(vm);
  Fail(request, std::move(started).error());
}

void Core::CloseVm(RequestId request, VmId vm) {
  const auto found = vms_.find(vm);
  if (found == vms_.end()) {
    sink_->Deliver(Done{request, {}});
    return;
  }
  std::shared_ptr<VmEntry> entry = std::move(found->second);
  vms_.erase(found);
  entry->Cancel();
  Reaper::Submit([entry = std::move(entry), request, sink = sink_] {
    entry->Release();
    sink->Deliver(Done{request, {}});
  });
  ReleaseIdleWorkers();
}

std::shared_ptr<Core::VmEntry> Core::Find(VmId vm) {
  const auto found = vms_.find(vm);
  if (found == vms_.end()) return nullptr;
  std::lock_guard lock(found->second->mutex);
  return found->second->vm != nullptr ? found->second : nullptr;
}

Vm* Core::Running(VmId vm) {
  const auto entry = Find(vm);
  return entry != nullptr ? entry->vm.get() : nullptr;
}

void Core::Stats(RequestId request, VmId vm) {
  const Vm* running = Running(vm);
  if (running == nullptr) return FailClosed(request);
  auto stats = running->Stats();
  if (!stats.ok()) return Fail(request, std::move(stats).error());
  sink_->Deliver(Done{request, std::move(stats).value()});
}

void Core::Probe(RequestId request, std::string kvm_path) {
  auto probe = [request, path = std::move(kvm_path), sink = sink_] {
    sink->Deliver(Done{request, ProbeKvm(path)});
  };
  auto started = jobs_.Start("forklet-probe", std::move(probe));
  if (!started.ok()) Fail(request, std::move(started).error());
}

void Core::PauseVm(RequestId request, VmId vm) {
  const auto entry = Find(vm);
  if (entry == nullptr || !entry->BeginJob()) return FailClosed(request);
  auto pause = [entry, request, sink = sink_] {
    if (entry->vm->Pause(DeadlineIn(kPauseTime))) {
      sink->Deliver(Done{request, {}});
    } else {
      sink->Deliver(Failed{
          request, {ErrorCode::kParkTimeout, 0, {}, "a vCPU of the guest does not stand still"}});
    }
    entry->EndJob();
  };
  auto started = jobs_.Start("forklet-pause", std::move(pause));
  if (started.ok()) return;
  entry->EndJob();
  Fail(request, std::move(started).error());
}

void Core::ResumeVm(RequestId request, VmId vm) {
  Vm* running = Running(vm);
  if (running == nullptr) return FailClosed(request);
  auto resumed = running->Resume();
  if (!resumed.ok()) return Fail(request, std::move(resumed).error());
  sink_->Deliver(Done{request, {}});
}

void Core::EnterVm(VmId vm) {
  if (Vm* running = Running(vm)) running->EnterOrEnd();
}

void Core::CallProgram(RequestId request, VmId vm, Bytes input, uint64_t max_bytes) {
  Vm* running = Running(vm);
  if (running == nullptr) return FailClosed(request);
  running->CallProgram(request, std::move(input), max_bytes);
}

void Core::CancelCall(RequestId request, VmId vm) {
  if (Vm* running = Running(vm)) running->CancelCall(request);
}

void Core::YieldProgram(VmId vm) {
  if (Vm* running = Running(vm)) running->YieldProgram();
}

void Core::Send(VmId vm, uint64_t connection, Bytes data) {
  if (Vm* running = Running(vm)) running->Send(connection, std::move(data));
}

void Core::Consume(VmId vm, uint64_t connection, uint64_t bytes) {
  if (Vm* running = Running(vm)) running->Consume(connection, bytes);
}

void Core::Disconnect(VmId vm, uint64_t connection) {
  if (Vm* running = Running(vm)) running->Disconnect(connection);
}

void Core::CancelAll() {
  for (const auto& [id, entry] : vms_) entry->Cancel();
  for (const auto& [request, weak] : cancel_flags_) CancelRequest(request);
}

void Core::CloseAll() {
  CancelAll();
  for (const auto& [id, entry] : vms_) entry->Release();
  vms_.clear();
  jobs_.JoinAll();
  snapshots_.clear();
  workers_ = {};
}

void Core::StopAll() {
  CancelAll();
  for (const auto& [id, entry] : vms_) {
    entry->WaitIdle();
    if (entry->vm == nullptr) continue;
    entry->vm->Shutdown();
    // Lifetime: deliberately for ever, here and below; unmapping gigabytes is the
    // kernel's work, and it is quicker at it.
    static_cast<void>(entry->vm.release());
  }
  vms_.clear();
  jobs_.JoinAll();
  for (auto& [id, entry] : snapshots_) {
    static_cast<void>(new std::shared_ptr<SnapshotEntry>(std::move(entry)));
  }
  snapshots_.clear();
  workers_ = {};
}

}  // namespace forklet
