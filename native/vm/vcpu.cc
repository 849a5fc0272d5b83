#include "vm/vcpu.h"

#include <cerrno>
#include <cstdio>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "kvm/stats.h"
#include "vm/completion_access.h"

namespace forklet {

namespace {

const char* ExitName(uint32_t reason) {
  switch (reason) {
    case KVM_EXIT_EXCEPTION:
      return "exception";
    case KVM_EXIT_IO:
      return "io";
    case KVM_EXIT_DEBUG:
      return "debug";
    case KVM_EXIT_HLT:
      return "hlt";
    case KVM_EXIT_MMIO:
      return "mmio";
    case KVM_EXIT_SHUTDOWN:
      return "shutdown";
    case KVM_EXIT_FAIL_ENTRY:
      return "failEntry";
    case KVM_EXIT_INTR:
      return "interrupted";
    case KVM_EXIT_INTERNAL_ERROR:
      return "internalError";
    case KVM_EXIT_SYSTEM_EVENT:
      return "systemEvent";
    default:
      return "other";
  }
}

// The instruction as KVM fetched it; empty when KVM does not say.
std::span<const uint8_t> RefusedBytes(const kvm_run& run) {
  const auto& failure = run.emulation_failure;
  if (failure.ndata == 0 ||
      (failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0 ||
      failure.insn_size > sizeof failure.insn_bytes) {
    return {};
  }
  return {failure.insn_bytes, failure.insn_size};
}

std::string Hex(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

Vcpu::~Vcpu() {
  RequestStop();
  Join();
}

Status Vcpu::Prepare() {
  std::lock_guard lock(mutex_);
  if (mode_ != Mode::kHold || thread_.joinable()) return Ok();
  // As if there were an access to complete, KVM_RUN comes before standing still.
  access_pending_ = true;
  approach_ = true;
  return StartThread();
}

Status Vcpu::StartThread() {
  if (thread_.joinable()) return Ok();
  TRY(Thread::InstallKickHandler());
  // Opened now: like every vCPU request, this one would wait for KVM_RUN to
  // return, which for an idle guest is for ever.
  if (auto stats = fd_.OpenStats(); stats.ok()) stats_ = std::move(stats).value();
  ASSIGN_OR_RETURN(thread_, Thread::Start("forklet-vcpu" + std::to_string(id_), [this] { Run(); }));
  running_ = true;
  return Ok();
}

Status Vcpu::Release() {
  std::lock_guard lock(mutex_);
  if (mode_ != Mode::kHold) return Ok();
  TRY(StartThread());
  mode_ = Mode::kRun;
  attention_.store(false);
  fd_.ClearExitRequest();
  changed_.notify_all();
  return Ok();
}

void Vcpu::Interrupt(Mode mode) {
  mode_ = mode;
  attention_.store(true);
  // The exit request catches a thread on its way into KVM_RUN, the signal one
  // that is inside. Both come after the flag, which the thread reads last.
  fd_.RequestExit();
  if (running_ && !thread_.IsCurrent()) thread_.Kick();
  changed_.notify_all();
}

void Vcpu::RequestHold() {
  std::lock_guard lock(mutex_);
  if (mode_ == Mode::kRun) Interrupt(Mode::kHold);
}

bool Vcpu::WaitHeld(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [this] { return held_ || !running_; });
}

void Vcpu::RequestStop() {
  std::lock_guard lock(mutex_);
  if (mode_ != Mode::kStop) Interrupt(Mode::kStop);
}

bool Vcpu::IsCurrent() const {
  std::lock_guard lock(mutex_);
  return running_ && thread_.IsCurrent();
}

void Vcpu::Join() {
  if (thread_.joinable()) thread_.Join();
}

bool Vcpu::MayHaveRunKernel() const {
  {
    std::lock_guard lock(mutex_);
    if (!thread_.joinable()) return false;
  }
  std::optional<uint64_t> emulated;
  std::optional<uint64_t> accesses;
  const Status read = stats_ ? VisitStats(stats_,
                                          [&](std::string_view name, uint64_t value) {
                                            if (name == "insn_emulation") emulated = value;
                                            if (name == "mmio_exits") accesses = value;
                                          })
                             : Status(Error{ErrorCode::kKvm, 0, {}, {}});
  return !read.ok() || !emulated || !accesses || *emulated != *accesses;
}

void Vcpu::AddExits(std::map<std::string, uint64_t>& totals) const {
  for (size_t reason = 0; reason < kExitReasons; ++reason) {
    const uint64_t count = exits_[reason].load(std::memory_order_relaxed);
    if (count > 0) totals[ExitName(static_cast<uint32_t>(reason))] += count;
  }
}

uint64_t Vcpu::CpuTimeNs() const {
  std::lock_guard lock(mutex_);
  return running_ ? thread_.CpuTimeNs() : final_cpu_time_ns_;
}

void Vcpu::Run() {
  RunUntilStopped();
  std::lock_guard lock(mutex_);
  final_cpu_time_ns_ = thread_.CpuTimeNs();
  running_ = false;
  changed_.notify_all();
}

void Vcpu::RunUntilStopped() {
  for (;;) {
    if (attention_.load() && !StandStill()) return;
    access_pending_ = false;
    const int error = std::exchange(approach_, false) ? RunToEntry() : fd_.Run();
    const Next next = error == 0 ? HandleExit() : HandleError(error);
    if (next == Next::kStop) return;
  }
}

int Vcpu::RunToEntry() {
  int error = 0;
  Thread::WithPendingKick([&](const sigset_t& others) { error = fd_.RunWithSignals(others); });
  return error;
}

bool Vcpu::StandStill() {
  std::unique_lock lock(mutex_);
  if (mode_ == Mode::kStop) return false;
  // With an access pending, KVM_RUN comes first: it completes the access, and
  // then returns because of the exit request, without entering the guest. A
  // string instruction can take many such rounds.
  if (access_pending_) return true;
  held_ = mode_ == Mode::kHold;
  changed_.notify_all();
  changed_.wait(lock, [this] { return mode_ != Mode::kHold; });
  held_ = false;
  return mode_ == Mode::kRun;
}

Vcpu::Next Vcpu::HandleError(int error) {
  // Some kernels return these spuriously from KVM_RUN; in a row they are real.
  constexpr uint32_t kMaxRetries = 100;
  if (error == EINTR) return Next::kEnter;  // The kick, or a signal on its way elsewhere
  // What KVM cannot read of a file-backed memory is no RAM to it either.
  if (error == EFAULT && context_.memory->guard() != nullptr) return ExitWithoutMemory();
  if ((error == EAGAIN || error == ENOMEM) && ++retries_ <= kMaxRetries) return Next::kEnter;
  return Exit(
      ExitReason::kHostError,
      Error{ErrorCode::kKvm, error, "KVM_RUN", "vCPU " + std::to_string(id_)}.Message() + Where());
}

Vcpu::Next Vcpu::ExitWithoutMemory() { return Exit(ExitReason::kIoError, GuestMemory::kFailed); }

Vcpu::Next Vcpu::HandleExit() {
  retries_ = 0;
  const kvm_run& run = fd_.shared();
  const size_t counter = run.exit_reason < kExitReasons ? run.exit_reason : kExitReasons - 1;
  exits_[counter].fetch_add(1, std::memory_order_relaxed);
  switch (run.exit_reason) {
    case KVM_EXIT_IO:
      access_pending_ = true;
      return HandlePort();
    case KVM_EXIT_MMIO:
      access_pending_ = true;
      return HandleMmio();
    case KVM_EXIT_INTR:
      return Next::kEnter;
    case KVM_EXIT_INTERNAL_ERROR:
      return HandleInternalError();
    case KVM_EXIT_SHUTDOWN:
      return Exit(ExitReason::kTripleFault, "vCPU " + std::to_string(id_) + Where());
    case KVM_EXIT_FAIL_ENTRY:
      return Exit(ExitReason::kHostError, "KVM could not enter the guest: hardware reason " +
                                              Hex(run.fail_entry.hardware_entry_failure_reason) +
                                              Where());
    default:
      return Exit(ExitReason::kHostError,
                  "unexpected VM exit, reason " + std::to_string(run.exit_reason) + Where());
  }
}

Vcpu::Next Vcpu::HandlePort() {
  const kvm_run& run = fd_.shared();
  const std::span<uint8_t> data = fd_.PortData();
  const size_t size = run.io.size;
  if (size == 0 || data.size() != size * run.io.count) {
    return Exit(ExitReason::kHostError, "KVM described a port access outside its own area");
  }
  // A string instruction arrives as several accesses to the same port.
  for (size_t offset = 0; offset < data.size(); offset += size) {
    if (run.io.direction == KVM_EXIT_IO_IN) {
      context_.ports->Read(run.io.port, data.subspan(offset, size));
    } else {
      context_.ports->Write(run.io.port, data.subspan(offset, size));
    }
  }
  return Next::kEnter;
}

Vcpu::Next Vcpu::HandleMmio() {
  kvm_run& run = fd_.shared();
  if (run.mmio.len == 0 || run.mmio.len > sizeof run.mmio.data) {
    return Exit(ExitReason::kHostError,
                "KVM described an MMIO access of " + std::to_string(run.mmio.len) + " bytes");
  }
  // KVM's emulator takes memory that it cannot access for a device.
  if (context_.memory->guard() != nullptr &&
      context_.memory->Range(GuestAddress{run.mmio.phys_addr}, 1) != nullptr) {
    return ExitWithoutMemory();
  }
  if (run.mmio.is_write != 0) {
    context_.mmio->Write(run.mmio.phys_addr, {run.mmio.data, run.mmio.len});
  } else {
    context_.mmio->Read(run.mmio.phys_addr, {run.mmio.data, run.mmio.len});
  }
  return Next::kEnter;
}

Vcpu::Next Vcpu::HandleInternalError() {
  const kvm_run& run = fd_.shared();
  const uint32_t suberror = run.internal.suberror;
  if (suberror != KVM_INTERNAL_ERROR_EMULATION) {
    return Exit(ExitReason::kInternalError,
                "KVM internal error, suberror " + std::to_string(suberror) + Where());
  }
  CompletionAccess access(fd_, context_.xsave_bytes);
  auto completed = CompleteInstruction(access, *context_.memory, RefusedBytes(run));
  if (!completed.ok()) {
    return Exit(ExitReason::kInternalError, completed.error().Message() + Where());
  }
  if (completed.value().outcome == Completion::Outcome::kNotRecognised) {
    return Exit(ExitReason::kInternalError,
                "KVM's emulator refused an instruction that we do not complete either: " +
                    completed.value().description + Where());
  }
  completed_instructions_.fetch_add(1, std::memory_order_relaxed);
  return Next::kEnter;
}

Vcpu::Next Vcpu::Exit(ExitReason reason, std::string detail) {
  context_.observer->OnVcpuExit(reason, std::move(detail));
  return Next::kStop;
}

std::string Vcpu::Where() const {
  auto regs = fd_.GetRegs();
  auto sregs = fd_.GetSregs();
  if (!regs.ok() || !sregs.ok()) return {};
  return ", at RIP " + Hex(regs.value().rip) + ", CPL " +
         std::to_string(sregs.value().cs.selector & 3) + ", CR2 " + Hex(sregs.value().cr2);
}

}  // namespace forklet
