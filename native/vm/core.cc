#include "vm/core.h"

#include <atomic>
#include <utility>

#include "base/clock.h"
#include "vm/probe.h"
#include "vm/reaper.h"

namespace forklet {

namespace {

constexpr size_t kJobStackBytes = 512u << 10;

// The process's device thread; it lives as long as a VM holds it.
Result<std::shared_ptr<EventLoop>> SharedDeviceLoop() {
  // Never destroyed: threads may outlive static destructors at process exit.
  static auto& mutex = *new std::mutex;
  static auto& shared = *new std::weak_ptr<EventLoop>;
  std::lock_guard lock(mutex);
  if (auto loop = shared.lock()) return loop;
  ASSIGN_OR_RETURN(std::shared_ptr<EventLoop> loop, EventLoop::Create("forklet-devices"));
  shared = loop;
  return loop;
}

}  // namespace

// A VM from the request for it to its release.
//
// Thread: `boot` belongs to the core's thread, then to the reaper. `vm` is
// written once by the boot thread, under the mutex.
struct Core::Entry {
  std::atomic<bool> cancelled = false;
  Thread boot;
  std::mutex mutex;
  std::unique_ptr<Vm> vm;

  Result<BootTimes> Boot(VmId id, const VmConfig& config, std::shared_ptr<EventSink> sink,
                         uint64_t epoch_ns) {
    BootTimes times;
    times.started = MonotonicNs() - epoch_ns;
    ASSIGN_OR_RETURN(std::shared_ptr<EventLoop> loop, SharedDeviceLoop());
    ASSIGN_OR_RETURN(std::unique_ptr<Vm> built,
                     Vm::Boot(id, config, std::move(loop), std::move(sink), epoch_ns, times));
    std::lock_guard lock(mutex);
    if (cancelled.load()) return Error{ErrorCode::kClosed, 0, {}, "the VM was closed"};
    times.entered = MonotonicNs() - epoch_ns;
    TRY(built->Start());
    vm = std::move(built);
    return times;
  }

  // Ends what runs, without waiting.
  void Cancel() {
    cancelled.store(true);
    std::lock_guard lock(mutex);
    if (vm != nullptr) vm->RequestStop();
  }

  // Waits for the boot to be over, and releases everything. Any thread that may
  // wait.
  void Release() {
    Cancel();
    if (boot.joinable()) boot.Join();
    vm.reset();
  }
};

Core::~Core() { CHECK(entries_.empty() && jobs_.empty()); }

void Core::Fail(RequestId request, Error error) {
  sink_->Deliver(Failed{request, std::move(error)});
}

void Core::CreateVm(RequestId request, VmId vm, VmConfig config) {
  const uint64_t epoch_ns = MonotonicNs();
  auto entry = std::make_shared<Entry>();
  if (!entries_.emplace(vm, entry).second) {
    return Fail(request, Error{ErrorCode::kInternal, 0, {}, "this VM exists already"});
  }
  auto thread = Thread::Start(
      "forklet-boot",
      [entry, request, vm, config = std::move(config), sink = sink_, epoch_ns] {
        auto times = entry->Boot(vm, config, sink, epoch_ns);
        if (times.ok()) {
          sink->Deliver(Done{request, times.value()});
        } else {
          sink->Deliver(Failed{request, std::move(times).error()});
        }
      },
      kJobStackBytes);
  if (!thread.ok()) {
    entries_.erase(vm);
    return Fail(request, std::move(thread).error());
  }
  entry->boot = std::move(thread).value();
}

void Core::CloseVm(RequestId request, VmId vm) {
  const auto found = entries_.find(vm);
  if (found == entries_.end()) {
    sink_->Deliver(Done{request, {}});
    return;
  }
  std::shared_ptr<Entry> entry = std::move(found->second);
  entries_.erase(found);
  Reaper::Submit([entry = std::move(entry), request, sink = sink_] {
    entry->Release();
    sink->Deliver(Done{request, {}});
  });
}

Vm* Core::Running(VmId vm) {
  const auto found = entries_.find(vm);
  if (found == entries_.end()) return nullptr;
  // Lifetime: once set, the VM stays until the entry is released, which this
  // thread alone begins.
  std::lock_guard lock(found->second->mutex);
  return found->second->vm.get();
}

void Core::Stats(RequestId request, VmId vm) {
  const Vm* running = Running(vm);
  if (running == nullptr) {
    return Fail(request, Error{ErrorCode::kClosed, 0, {}, "the VM does not run"});
  }
  auto stats = running->Stats();
  if (!stats.ok()) return Fail(request, std::move(stats).error());
  sink_->Deliver(Done{request, std::move(stats).value()});
}

void Core::Probe(RequestId request, std::string kvm_path) {
  auto job = std::make_shared<Thread>();
  auto thread = Thread::Start(
      "forklet-probe",
      [request, path = std::move(kvm_path), sink = sink_] {
        sink->Deliver(Done{request, ProbeKvm(path)});
      },
      kJobStackBytes);
  if (!thread.ok()) return Fail(request, std::move(thread).error());
  *job = std::move(thread).value();
  jobs_.push_back(std::move(job));
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

void Core::CloseAll() {
  for (const auto& [id, entry] : entries_) entry->Cancel();
  for (const auto& [id, entry] : entries_) entry->Release();
  entries_.clear();
  for (const auto& job : jobs_) job->Join();
  jobs_.clear();
}

void Core::StopAll() {
  for (const auto& [id, entry] : entries_) entry->Cancel();
  for (const auto& [id, entry] : entries_) {
    if (entry->boot.joinable()) entry->boot.Join();
    if (entry->vm != nullptr) {
      entry->vm->Shutdown();
      // Lifetime: deliberately for ever; unmapping gigabytes is the kernel's
      // work, and it is quicker at it.
      static_cast<void>(entry->vm.release());
    }
  }
  entries_.clear();
  for (const auto& job : jobs_) job->Join();
  jobs_.clear();
}

}  // namespace forklet
