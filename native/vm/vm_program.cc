// The half of Vm that talks to a guest program at its park.
//
// Once a program has answered a request, and nothing else is to do, the whole VM
// stands still (Hold::kStanding): the next request runs from the read of
// PARK_PROGRAM to the next one without the guest's kernel. A program that nobody
// has called, or whose VM has other work, waits in its kernel (YIELD), from where
// the doorbell's interrupt calls it back.
#include <cstring>
#include <utility>

#include "arch/x86_64/cpu_state.h"
#include "arch/x86_64/layout.h"
#include "base/random.h"
#include "vm/vm.h"

namespace forklet {

namespace {

constexpr GuestAddress kExchangeData = layout::kExchange + Exchange::kDataOffset;

// A guest's words, as they may stand in an error: one line of printable text.
std::string Printable(const Bytes& bytes) {
  constexpr size_t kMaxBytes = 1024;
  std::string text;
  for (const uint8_t byte : bytes) {
    if (text.size() == kMaxBytes) break;
    const bool plain = byte >= 0x20 && byte != 0x7f;
    text += plain ? static_cast<char>(byte) : ' ';
  }
  return text;
}

}  // namespace

void Vm::OnPark(ParkPlace place) {
  std::optional<Event> answer;
  {
    std::lock_guard lock(park_mutex_);
    if (place == ParkPlace::kProgram) {
      answer = OnProgramParked();
    } else if (freezer_ && freezer_->place == ParkPlace::kAgent && !freezer_->parked) {
      parked_vcpu_ = CurrentVcpu();
      freezer_->parked = true;
      AddHold(Hold::kFreezing);
      parked_.notify_all();
    }
  }
  // Last, since whoever gets it may ask for more at once.
  if (answer) sink_->Deliver(*std::move(answer));
}

std::optional<Event> Vm::OnProgramParked() {
  parked_vcpu_ = CurrentVcpu();
  program_ = Program::kParked;
  // Parking is the answer to the request before, if it still has a caller.
  const bool answered = std::exchange(answer_due_, false);
  std::optional<Event> answer;
  if (answered && call_ && call_->handed_over) answer = FinishCall();
  if (freezer_ && freezer_->place == ParkPlace::kProgram && !freezer_->parked) {
    freezer_->parked = true;
    AddHold(Hold::kFreezing);
    AddHold(Hold::kStanding);
    parked_.notify_all();
  } else if (call_) {
    HandOver(/*just_started=*/false);
  } else if (answered && !freezer_ && !yield_due_.load()) {
    AddHold(Hold::kStanding);
  } else {
    yield_due_ = false;
    program_ = Program::kWaiting;
    Command(ExchangeCommand::kYield);
  }
  return answer;
}

void Vm::OnProgramGone() {
  std::lock_guard lock(park_mutex_);
  program_ = Program::kRunning;
  answer_due_ = false;
  FailCall(ErrorCode::kProgram, "the guest's program has ended");
}

void Vm::CallProgram(RequestId request, Bytes input, uint64_t max_bytes) {
  Status entered = Ok();
  {
    std::lock_guard lock(park_mutex_);
    if (ended_.load()) {
      return sink_->Deliver(
          Failed{request, {ErrorCode::kExited, 0, {}, "the VM has stopped running"}});
    }
    if (call_) {
      return sink_->Deliver(
          Failed{request, {ErrorCode::kInternal, 0, {}, "a program answers one call at a time"}});
    }
    if (input.size() > Exchange::kDataBytes) {
      return sink_->Deliver(
          Failed{request,
                 {ErrorCode::kProgram,
                  0,
                  {},
                  "the input has " + std::to_string(input.size()) +
                      " bytes; a program takes at most " + std::to_string(Exchange::kDataBytes)}});
    }
    call_.emplace(Call{request, std::move(input), max_bytes});
    if (program_ == Program::kParked) {
      entered = CallParked();
    } else {
      // A fork frozen elsewhere has to run before anybody can park.
      entered = EnterLocked();
      if (program_ == Program::kWaiting) doorbell_line_.Raise();
    }
  }
  EndOnFailure(entered);
}

Status Vm::CallParked() {
  // A fork that is entered now finds its request in place.
  ASSIGN_OR_RETURN(const bool entering, BeginEntry());
  HandOver(entering);
  return entering ? EndEntry() : RemoveHold(Hold::kStanding);
}

void Vm::CancelCall(RequestId request) {
  std::lock_guard lock(park_mutex_);
  // The program goes on with what it was given; its answer is dropped.
  if (call_ && call_->request == request) FailCall(ErrorCode::kCancelled, {});
}

void Vm::YieldProgram() {
  Status yielded = Ok();
  {
    std::lock_guard lock(park_mutex_);
    yielded = YieldLocked();
  }
  EndOnFailure(yielded);
}

Status Vm::YieldLocked() {
  if (program_ != Program::kParked) {
    yield_due_ = program_ == Program::kRunning;
    return EnterLocked();
  }
  // Under way to a freeze or a request: after that.
  if (freezer_ && freezer_->parked) {
    yield_due_ = true;
    return Ok();
  }
  program_ = Program::kWaiting;
  Command(ExchangeCommand::kYield);
  TRY(EnterLocked());
  return RemoveHold(Hold::kStanding);
}

void Vm::HandOver(bool just_started) {
  call_->handed_over = true;
  answer_due_ = true;
  program_ = Program::kRunning;
  GuestIdentity now = identity_;
  if (just_started) {
    // It is of this moment, but for the entropy, which is the kernel's.
    FillRandom(now.entropy, sizeof now.entropy);
  } else {
    const auto tsc = GuestTsc(vcpus_[parked_vcpu_]->fd(), *host_);
    now = NewIdentity(identity_.generation, tsc.ok() ? tsc.value() : 0);
  }
  Exchange exchange;
  exchange.command = ExchangeCommand::kRequest;
  exchange.input_bytes = static_cast<uint32_t>(call_->input.size());
  exchange.sequence = ++sequence_;
  exchange.generation = now.generation;
  std::memcpy(exchange.entropy, now.entropy, sizeof exchange.entropy);
  exchange.realtime_ns = now.realtime_ns;
  exchange.tsc = now.tsc;
  exchange.tsc_khz = now.tsc_khz;
  CHECK(memory_.WriteObject(layout::kExchange, exchange));
  CHECK(memory_.Write(kExchangeData, call_->input));
}

Event Vm::FinishCall() {
  const Call call = std::move(*call_);
  call_.reset();
  const auto fail = [&](std::string detail) {
    return Failed{call.request, {ErrorCode::kProgram, 0, {}, std::move(detail)}};
  };
  // Read once; the program may write on, should it have more threads than one.
  Exchange exchange;
  CHECK(memory_.ReadObject(layout::kExchange, exchange));
  if (exchange.output_bytes > Exchange::kDataBytes) {
    return fail("the guest's program claims an answer of " + std::to_string(exchange.output_bytes) +
                " bytes, more than there is room for");
  }
  Bytes answer(exchange.output_bytes);
  CHECK(memory_.Read(kExchangeData, answer));
  if (exchange.error != 0) return fail(Printable(answer));
  if (answer.size() > call.max_bytes) {
    return fail("the guest's program answered " + std::to_string(answer.size()) +
                " bytes, more than the " + std::to_string(call.max_bytes) + " asked for");
  }
  return Done{call.request, std::move(answer)};
}

void Vm::FailCall(ErrorCode code, std::string detail) {
  if (!call_) return;
  sink_->Deliver(Failed{call_->request, {code, 0, {}, std::move(detail)}});
  call_.reset();
}

void Vm::Command(ExchangeCommand command) {
  CHECK(memory_.WriteObject(layout::kExchange + offsetof(Exchange, command), command));
}

}  // namespace forklet
