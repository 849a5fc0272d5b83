// The half of Vm that is put back to a snapshot.
#include <algorithm>

#include "vm/reaper.h"
#include "vm/vm.h"

namespace forklet {

namespace {

// A vCPU whose program is at its park has to complete one access.
constexpr std::chrono::milliseconds kMomentToStand{1};

// What is undone in one turn of the device thread, which serves other VMs too.
constexpr uint64_t kMaxTurnPages = 64;

}  // namespace

Status Vm::BeginReset(const VmState& state) {
  if (ended_.load()) return Error{ErrorCode::kExited, 0, {}, "the VM has stopped running"};
  if (state.memory_bytes != memory_.bytes() || state.cpus.size() != vcpus_.size()) {
    return Error{ErrorCode::kNoSnapshot,
                 0,
                 {},
                 "a VM can be reset to a snapshot with as much memory and as many vCPUs only"};
  }
  AddHold(Hold::kRestoring);
  std::lock_guard lock(park_mutex_);
  FailCall(ErrorCode::kReset, "the VM was reset");
  return Ok();
}

void Vm::TryReset(std::shared_ptr<const VmState> state,
                  std::function<void(std::optional<Status>)> done) {
  loop_->Post(
      [this, state = std::move(state), done = std::move(done)] { done(ResetInTurn(state)); });
}

std::optional<Status> Vm::ResetInTurn(const std::shared_ptr<const VmState>& state) {
  {
    std::lock_guard lock(park_mutex_);
    if (program_ != Program::kParked) return {};
  }
  if (!WaitHeld(DeadlineIn(kMomentToStand))) return {};
  if (state->memory != memory_.image() || MayHaveStaleTranslations(*state)) return {};
  const auto written = memory_.WrittenPages();
  if (!written.ok()) return Status(written.error());
  if (CountPages(written.value()) > kMaxTurnPages) return {};
  Status rolled_back = memory_.RollBack(written.value());
  if (!rolled_back.ok()) return rolled_back;
  return RestoreMachine(state);
}

Status Vm::Reset(const Kvm& kvm, std::shared_ptr<const VmState> state) {
  if (!WaitHeld(DeadlineIn(kHoldTime))) {
    return Error{ErrorCode::kParkTimeout, 0, {}, "a vCPU of the guest does not stand still"};
  }
  if (devices_connected_) static_cast<void>(QuiesceDevices());
  const bool stale = MayHaveStaleTranslations(*state);
  if (state->memory == memory_.image()) {
    ASSIGN_OR_RETURN(const auto written, memory_.WrittenPages());
    TRY(memory_.RollBack(written));
  } else {
    TRY(ReplaceMemory(state->memory));
  }
  if (stale) TRY(RebuildMachine(kvm));
  Status restored = Ok();
  loop_->PostAndWait([&] { restored = RestoreMachine(std::move(state)); });
  if (!restored.ok()) return restored;
  if (devices_connected_) ResumeDevices();
  return Ok();
}

Status Vm::ReplaceMemory(std::shared_ptr<const MemoryImage> image) {
  loop_->PostAndWait([this] {
    if (memory_.guard() != nullptr) loop_->Remove(memory_.guard()->failure());
  });
  TRY(memory_.Map(std::move(image)));
  return devices_connected_ ? WatchMemory() : Ok();
}

// KVM hears of it when a page of the guest is dropped, and forgets where the page
// was mapped; what the page said, if it was one of the guest's page tables, it goes
// on believing. Only the guest's kernel changes these, but for their accessed and
// dirty bits.
bool Vm::MayHaveStaleTranslations(const VmState& state) const {
  if (!host_->shadow_paging) return false;
  if (!host_->emulated_supervisor || state.memory != memory_.image()) return true;
  return std::any_of(vcpus_.begin(), vcpus_.end(),
                     [](const auto& vcpu) { return vcpu->MayHaveRunKernel(); });
}

Status Vm::RebuildMachine(const Kvm& kvm) {
  // Teardown: the vCPUs before the VM.
  struct Machine {
    VmFd fd;
    std::vector<std::unique_ptr<Vcpu>> vcpus;
  };
  ASSIGN_OR_RETURN(VmFd fd, CreateMachine(kvm, *host_, memory_));
  ASSIGN_OR_RETURN(auto vcpus, CreateVcpus(kvm, fd, static_cast<uint32_t>(vcpus_.size())));
  auto machine = std::make_shared<Machine>(Machine{std::move(fd), std::move(vcpus)});
  // From here on there is no way back to the old ones.
  RequestStop();
  for (const auto& vcpu : vcpus_) vcpu->Join();
  Status replaced = Ok();
  loop_->PostAndWait([&] {
    std::lock_guard park_lock(park_mutex_);
    std::lock_guard run_lock(run_mutex_);
    replaced = AddMachineStats(retired_);
    if (replaced.ok()) replaced = WireDevices(machine->fd);
    if (!replaced.ok()) return;
    std::swap(fd_, machine->fd);
    vcpus_.swap(machine->vcpus);
    if (!ended_.load()) return;
    for (const auto& vcpu : vcpus_) vcpu->RequestStop();
  });
  Reaper::Submit([machine = std::move(machine)] {});
  EndOnFailure(replaced);
  return replaced;
}

}  // namespace forklet
