// The half of Vm that stops a guest at its park and takes its state, or gives it
// one.
#include <algorithm>
#include <thread>

#include "arch/x86_64/cpu_state.h"
#include "arch/x86_64/layout.h"
#include "vm/vm.h"

namespace forklet {

namespace {

// Times that a guest is sent to park anew because an interrupt came in between, or is
// about to. A guest that is never quiet is frozen with its interrupt after that.
constexpr int kMaxParks = 64;

constexpr std::chrono::microseconds kPauseBetweenParks{200};

// Turns of the device thread that the work of a guest which stands still takes;
// its queues hold no more.
constexpr int kMaxFinalTurns = 64;

constexpr GuestAddress kMailboxFlags = layout::kMailbox + offsetof(Mailbox, flags);

}  // namespace

void Vm::EndFreeze(const std::function<void()>& announce) {
  Status released = Ok();
  {
    // Held throughout, so that a next freeze begins after all of this.
    std::lock_guard lock(park_mutex_);
    announce();
    // A program that was called to its park goes back to where it waited, and
    // whatever was sent meanwhile needs the guest.
    const bool yield =
        (freezer_->place == ParkPlace::kProgram && !freezer_->stood) || yield_due_.load();
    freezer_.reset();
    StopParkingAgain();
    ResumeDevices();
    released = RemoveHold(Hold::kFreezing);
    if (yield && released.ok()) released = YieldLocked();
  }
  EndOnFailure(released);
}

Status Vm::BeginFreeze(ParkPlace place) {
  std::unique_lock lock(park_mutex_);
  if (ended_.load()) return Error{ErrorCode::kExited, 0, {}, "the VM has stopped running"};
  if (freezer_) return Error{ErrorCode::kInternal, 0, {}, "the VM is being frozen already"};
  freezer_.emplace(Freezer{place});
  if (place == ParkPlace::kAgent) return Ok();
  if (program_ == Program::kWaiting) doorbell_line_.Raise();
  if (program_ == Program::kParked) {
    AddHold(Hold::kFreezing);
    AddHold(Hold::kStanding);
    freezer_->parked = freezer_->stood = true;
  }
  // Its time starts, should it be a fork that nobody has entered yet.
  Status entered = EnterLocked();
  if (entered.ok()) return Ok();
  freezer_.reset();
  lock.unlock();
  EndOnFailure(entered);
  return entered;
}

// Ordering requirements:
//  - the vCPUs stand still before the devices do, which they keep at work;
//  - the devices stand still before the CPUs are saved: finished work raises
//    interrupts;
//  - memory last: requests of the vCPUs may still write to it.
Result<std::shared_ptr<const VmState>> Vm::Freeze(Deadline deadline, uint64_t& parked_ns) {
  auto state = std::make_shared<VmState>();
  for (int parks = 1;; ++parks) {
    {
      std::unique_lock lock(park_mutex_);
      TRY(WaitParked(lock, deadline));
      state->place = freezer_->place;
      state->parked_vcpu = parked_vcpu_;
    }
    parked_ns = MonotonicNs();
    if (!WaitHeld(DeadlineIn(kHoldTime))) {
      return Error{ErrorCode::kParkTimeout, 0, {}, "a vCPU of the guest does not stand still"};
    }
    CHECK(memory_.WriteObject(kMailboxFlags, uint32_t{0}));
    state->devices = QuiesceDevices();
    ASSIGN_OR_RETURN(CpuState cpu, SaveCpu(vcpus_[state->parked_vcpu]->fd(), *host_));
    const bool quiet = !HasPendingInterrupt(cpu) && !HasTimerDue(cpu, *host_) &&
                       state->devices.vsock_transport.interrupt_status == 0 &&
                       state->devices.rng_transport.interrupt_status == 0;
    ASSIGN_OR_RETURN(const bool idle, OthersOutsideKernel(state->parked_vcpu));
    if (idle && (quiet || parks >= kMaxParks)) break;
    ResumeDevices();
    TRY(ParkAgain(state->place));
    // Time for the others to get out of what they are at, and for a timer to expire.
    if (!idle || !quiet) std::this_thread::sleep_for(kPauseBetweenParks);
  }
  state->memory_bytes = memory_.bytes();
  state->cpuid = cpuid_;
  state->emulated_supervisor = host_->emulated_supervisor;
  state->cpuid_unmasked = host_->cpuid_unmasked;
  state->control_connection = control_connection_.load();
  for (const auto& vcpu : vcpus_) {
    ASSIGN_OR_RETURN(CpuState cpu, SaveCpu(vcpu->fd(), *host_));
    state->cpus.push_back(std::move(cpu));
    TRY(vcpu->fd().NotifyStopped());
  }
  ASSIGN_OR_RETURN(state->irqchip, SaveIrqchip(fd_));
  ASSIGN_OR_RETURN(state->memory, memory_.Freeze());
  return std::shared_ptr<const VmState>(std::move(state));
}

// A fork's first vCPU reseeds the random pool while the others stand still: one of
// them that was stopped inside the guest's kernel may hold a lock that this takes.
Result<bool> Vm::OthersOutsideKernel(uint32_t parked) {
  constexpr uint8_t kUserPrivilege = 3;
  for (uint32_t id = 0; id < vcpus_.size(); ++id) {
    if (id == parked) continue;
    ASSIGN_OR_RETURN(const kvm_mp_state mp_state, vcpus_[id]->fd().GetMpState());
    if (mp_state.mp_state != KVM_MP_STATE_RUNNABLE) continue;  // Halted, or never started
    ASSIGN_OR_RETURN(const kvm_sregs sregs, vcpus_[id]->fd().GetSregs());
    // The privilege level is SS's.
    if (sregs.ss.dpl != kUserPrivilege) return false;
  }
  return true;
}

Status Vm::WaitParked(std::unique_lock<std::mutex>& lock, Deadline deadline) {
  const bool settled = parked_.wait_until(
      lock, deadline, [this] { return freezer_->parked || freezer_->cancelled || ended_.load(); });
  if (ended_.load()) return Error{ErrorCode::kExited, 0, {}, "the VM has stopped running"};
  if (freezer_->cancelled) return Error{ErrorCode::kCancelled, 0, {}, {}};
  if (settled) return Ok();
  return Error{ErrorCode::kParkTimeout,
               0,
               {},
               freezer_->place == ParkPlace::kAgent
                   ? "the guest agent did not park in time; the VM goes on"
                   : "no program of the guest parked in time; the VM goes on"};
}

Status Vm::ParkAgain(ParkPlace place) {
  {
    std::lock_guard lock(park_mutex_);
    freezer_->parked = false;
    if (place == ParkPlace::kAgent) {
      CHECK(memory_.WriteObject(kMailboxFlags, uint32_t{Mailbox::kParkAgain}));
    } else {
      program_ = Program::kRunning;
      Command(ExchangeCommand::kIdle);
    }
  }
  TRY(RemoveHold(Hold::kStanding));
  return RemoveHold(Hold::kFreezing);
}

// A freeze that is given up between two parks must not leave the agent going back to
// its park for ever. Written only then: the page may be the snapshot's.
void Vm::StopParkingAgain() {
  uint32_t flags = 0;
  CHECK(memory_.ReadObject(kMailboxFlags, flags));
  if (flags != 0) CHECK(memory_.WriteObject(kMailboxFlags, uint32_t{0}));
}

void Vm::CancelFreeze() {
  std::lock_guard lock(park_mutex_);
  if (!freezer_) return;
  freezer_->cancelled = true;
  parked_.notify_all();
}

DevicesState Vm::QuiesceDevices() {
  DevicesState state;
  loop_->PostAndWait([&] {
    // What the guest has given to the devices is done before they are saved.
    for (VirtioMmio* transport : {vsock_transport_.get(), rng_transport_.get()}) {
      for (int turn = 0; turn < kMaxFinalTurns; ++turn) {
        bool more = false;
        for (uint16_t queue = 0; queue < transport->queue_count(); ++queue) {
          more |= transport->HandleNotify(queue) == Turn::kMoreWork;
        }
        if (!more) break;
      }
      transport->Quiesce();
    }
    state = {serial_->Save(), vsock_transport_->Save(), rng_transport_->Save(), vsock_->Save()};
  });
  return state;
}

void Vm::ResumeDevices() {
  vsock_transport_->Unquiesce();
  rng_transport_->Unquiesce();
}

Status Vm::Restore(std::shared_ptr<const VmState> state) {
  if (state->memory_bytes != memory_.bytes() || state->cpus.size() != vcpus_.size()) {
    return Error{ErrorCode::kInternal, 0, {}, "a snapshot of another size"};
  }
  if (memory_.image() != state->memory) TRY(memory_.Map(state->memory));
  return RestoreMachine(std::move(state));
}

Status Vm::RestoreMachine(std::shared_ptr<const VmState> state) {
  TRY(RestoreIrqchip(fd_, state->irqchip));
  for (size_t id = 0; id < vcpus_.size(); ++id) {
    TRY(RestoreCpu(vcpus_[id]->fd(), state->cpus[id]));
  }
  TRY(RestoreDevices(*state));
  {
    std::lock_guard lock(run_mutex_);
    holds_ = static_cast<uint32_t>(Hold::kNotEntered);
    reseeding_ = false;
  }
  std::lock_guard lock(park_mutex_);
  parked_vcpu_ = state->parked_vcpu;
  program_ = state->place == ParkPlace::kProgram ? Program::kParked : Program::kRunning;
  answer_due_ = false;
  yield_due_ = false;
  kick_due_ = vsock_->has_output() || state->devices.vsock_transport.interrupt_status != 0 ||
              state->devices.rng_transport.interrupt_status != 0;
  identity_ = {};
  origin_ = std::move(state);
  return Ok();
}

Status Vm::RestoreDevices(const VmState& state) {
  TRY(serial_->Restore(state.devices.serial));
  TRY(vsock_transport_->Restore(state.devices.vsock_transport));
  TRY(rng_transport_->Restore(state.devices.rng_transport));
  TRY(vsock_->Restore(state.devices.vsock));
  // Nobody here holds the other ends, nor what was delivered to them.
  vsock_->ResetOthers(ConnectionId{state.control_connection});
  vsock_->ForgetDelivered();
  control_dialled_.store(true);
  control_connection_.store(state.control_connection);
  return Ok();
}

}  // namespace forklet
