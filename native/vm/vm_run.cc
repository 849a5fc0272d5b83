// The half of Vm that starts, stops and paces its vCPUs.
#include <algorithm>
#include <cstring>
#include <utility>

#include "arch/x86_64/cpu_state.h"
#include "arch/x86_64/layout.h"
#include "base/random.h"
#include "vm/vm.h"

namespace forklet {

void Vm::AddHold(Hold hold) {
  std::lock_guard lock(run_mutex_);
  const bool running = holds_ == 0;
  holds_ |= static_cast<uint32_t>(hold);
  if (!running) return;
  for (const auto& vcpu : vcpus_) vcpu->RequestHold();
}

Status Vm::RemoveHold(Hold hold) {
  std::lock_guard lock(run_mutex_);
  if ((holds_ & static_cast<uint32_t>(hold)) == 0) return Ok();
  holds_ &= ~static_cast<uint32_t>(hold);
  return holds_ == 0 ? ReleaseVcpus() : Ok();
}

Status Vm::ReleaseVcpus() {
  for (uint32_t id = 0; id < vcpus_.size(); ++id) {
    if (reseeding_ && id != first_vcpu_) continue;
    TRY(vcpus_[id]->Release());
  }
  return Ok();
}

bool Vm::WaitHeld(Deadline deadline) {
  return std::all_of(vcpus_.begin(), vcpus_.end(),
                     [&](const auto& vcpu) { return vcpu->WaitHeld(deadline); });
}

uint32_t Vm::CurrentVcpu() const {
  for (uint32_t id = 0; id < vcpus_.size(); ++id) {
    if (vcpus_[id]->IsCurrent()) return id;
  }
  return 0;
}

void Vm::RequestStop() {
  std::lock_guard lock(run_mutex_);
  for (const auto& vcpu : vcpus_) vcpu->RequestStop();
}

Status Vm::Prepare(const std::vector<PageRun>& working_set) const {
  // Before KVM maps what is there.
  memory_.Populate(working_set);
  for (const auto& vcpu : vcpus_) {
    TRY(vcpu->Prepare());
    // One after the other, and whoever enters the VM finds them ready.
    static_cast<void>(vcpu->WaitHeld(DeadlineIn(kHoldTime)));
  }
  return Ok();
}

Status Vm::Enter() {
  std::lock_guard lock(park_mutex_);
  return EnterLocked();
}

void Vm::EnterOrEnd() { EndOnFailure(Enter()); }

Status Vm::EnterLocked() {
  ASSIGN_OR_RETURN(const bool entering, BeginEntry());
  return entering ? EndEntry() : Ok();
}

Result<bool> Vm::BeginEntry() {
  {
    std::lock_guard lock(run_mutex_);
    if ((holds_ & static_cast<uint32_t>(Hold::kNotEntered)) == 0) return false;
  }
  if (origin_ != nullptr) TRY(StartTime(*origin_));
  return true;
}

Status Vm::EndEntry() {
  if (origin_ != nullptr) serial_->Kick();
  TRY(RemoveHold(Hold::kNotEntered));
  // Behind the vCPUs, which are waited for: what the guest tells its devices
  // meanwhile, their notifiers keep. Here rather than on the device thread, which
  // would wake for it, and may do so before a vCPU on the same processor.
  if (!std::exchange(devices_connected_, true)) TRY(ConnectDevices());
  if (!std::exchange(kick_due_, false)) return Ok();
  vsock_transport_->Kick();
  rng_transport_->Kick();
  return Ok();
}

// The guest need not be told that it was stopped: its time goes on from where it was.
//
// Ordering requirement: the VM's clock, then each TSC, then what is computed from
// them. The mailbox comes last, so that its time is the freshest.
Status Vm::StartTime(const VmState& state) {
  TRY(fd_.SetClock(state.irqchip.clock_ns));
  uint64_t tsc = 0;
  for (uint32_t id = 0; id < vcpus_.size(); ++id) {
    ASSIGN_OR_RETURN(const uint64_t now, StartCpuTime(vcpus_[id]->fd(), state.cpus[id], *host_));
    if (id == state.parked_vcpu) tsc = now;
  }
  uint64_t generation = 0;
  while (generation == 0) FillRandom(&generation, sizeof generation);
  identity_ = NewIdentity(generation, tsc);

  Mailbox mailbox;
  mailbox.generation = identity_.generation;
  std::memcpy(mailbox.entropy, identity_.entropy, sizeof mailbox.entropy);
  mailbox.realtime_ns = identity_.realtime_ns;
  mailbox.tsc = identity_.tsc;
  mailbox.tsc_khz = identity_.tsc_khz;
  const size_t bytes = std::min(hostname_.size(), sizeof mailbox.hostname);
  mailbox.hostname_bytes = static_cast<uint32_t>(bytes);
  std::memcpy(mailbox.hostname, hostname_.data(), bytes);
  FillRandom(mailbox.id, sizeof mailbox.id);
  CHECK(memory_.WriteObject(layout::kMailbox, mailbox));
  std::lock_guard lock(run_mutex_);
  first_vcpu_ = state.parked_vcpu;
  // Where the agent is the first to run, nobody else uses randomness before it
  // has reseeded the pool.
  reseeding_ = state.place == ParkPlace::kAgent && vcpus_.size() > 1;
  return Ok();
}

GuestIdentity Vm::NewIdentity(uint64_t generation, uint64_t tsc) const {
  GuestIdentity identity;
  identity.generation = generation;
  FillRandom(identity.entropy, sizeof identity.entropy);
  identity.realtime_ns = RealtimeNs();
  identity.tsc = tsc;
  identity.tsc_khz = host_->tsc_khz;
  return identity;
}

void Vm::OnReseeded(uint32_t generation) {
  Status released = Ok();
  {
    std::lock_guard park_lock(park_mutex_);
    if (static_cast<uint32_t>(identity_.generation) != generation) return;
    std::lock_guard run_lock(run_mutex_);
    if (!reseeding_) return;
    reseeding_ = false;
    // With a hold, they start when it goes, like the first one.
    if (holds_ == 0) released = ReleaseVcpus();
  }
  EndOnFailure(released);
}

bool Vm::Pause(Deadline deadline) {
  AddHold(Hold::kPaused);
  if (WaitHeld(deadline)) return true;
  static_cast<void>(RemoveHold(Hold::kPaused));
  return false;
}

Status Vm::Resume() {
  for (const auto& vcpu : vcpus_) TRY(vcpu->fd().NotifyStopped());
  return RemoveHold(Hold::kPaused);
}

}  // namespace forklet
