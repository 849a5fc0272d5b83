#include "arch/x86_64/completion/completion.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "arch/x86_64/completion/context.h"
#include "arch/x86_64/completion/decode.h"
#include "arch/x86_64/completion/operations.h"
#include "arch/x86_64/completion/x86.h"
#include "arch/x86_64/layout.h"

namespace forklet {
namespace {

using Outcome = Completion::Outcome;

struct InstructionBytes {
  std::array<uint8_t, kMaxInstructionBytes> data = {};
  size_t size = 0;

  std::string Text() const {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < size; ++i) {
      if (i != 0) text += ' ';
      text += kDigits[data[i] >> 4];
      text += kDigits[data[i] & 15];
    }
    return text;
  }
};

// Appends what memory holds of the instruction, up to the end of a page.
bool Fetch(CompletionContext& context, InstructionBytes& bytes) {
  const uint64_t address = context.registers().rip + bytes.size;
  uint8_t* host = nullptr;
  if (!context.Translate(address, MemoryAccess::kFetch, false, host)) return false;
  const size_t in_page = layout::kPageSize - address % layout::kPageSize;
  const size_t count = std::min(in_page, bytes.data.size() - bytes.size);
  std::memcpy(bytes.data.data() + bytes.size, host, count);
  bytes.size += count;
  return true;
}

// Fetches as long as the instruction goes on: the page behind it is not looked
// at.
bool FetchAndDecode(CompletionContext& context, InstructionBytes& bytes, Instruction& instruction) {
  for (;;) {
    const Decoded decoded = Decode({bytes.data.data(), bytes.size});
    switch (decoded.status) {
      case Decoded::Status::kInstruction:
        instruction = decoded.instruction;
        return true;
      case Decoded::Status::kNotRecognised:
        return context.RefuseBecause("not an instruction that is completed");
      case Decoded::Status::kTruncated:
        // Longer than an instruction may be.
        if (bytes.size == bytes.data.size()) return context.RaiseProtection();
        if (!Fetch(context, bytes)) return false;
    }
  }
}

bool Execute(CompletionContext& context, const Instruction& instruction) {
  // LOCK is for instructions that modify memory, of which this is the only one.
  if (instruction.lock && instruction.operation != Operation::kCmpxchg16b) {
    return context.RaiseUndefined();
  }
  switch (instruction.operation) {
    case Operation::kClac:
    case Operation::kStac:
      return ExecuteClacStac(context, instruction);
    case Operation::kCmpxchg16b:
      return ExecuteCmpxchg16b(context, instruction);
    case Operation::kCrc32:
      return ExecuteCrc32(context, instruction);
    case Operation::kFwait:
      return ExecuteFwait(context, instruction);
    case Operation::kInt3:
      return true;  // The trap follows below
    case Operation::kLdmxcsr:
      return ExecuteLdmxcsr(context, instruction);
    case Operation::kPopcnt:
      return ExecutePopcnt(context, instruction);
    case Operation::kRdpkru:
    case Operation::kWrpkru:
      return ExecutePkru(context, instruction);
    case Operation::kRdtscp:
      return ExecuteRdtscp(context, instruction);
    case Operation::kStmxcsr:
      return ExecuteStmxcsr(context, instruction);
    case Operation::kUd:
      return context.RaiseUndefined();
    case Operation::kVerr:
    case Operation::kVerw:
      return ExecuteVerify(context, instruction);
    case Operation::kXgetbv:
      return ExecuteXgetbv(context, instruction);
    case Operation::kXrstor:
      return ExecuteXrstor(context, instruction);
    case Operation::kXsave:
    case Operation::kXsaveopt:
      return ExecuteXsave(context, instruction);
    case Operation::kXsavec:
      return ExecuteXsavec(context, instruction);
  }
  return context.RefuseBecause("not an instruction that is completed");
}

// The exception that follows an instruction that has retired.
std::optional<GuestException> TrapAfter(const Instruction& instruction, uint64_t rflags) {
  if (instruction.operation == Operation::kInt3) {
    return GuestException{x86::kBreakpointVector, std::nullopt};
  }
  if ((rflags & x86::kFlagTf) != 0) {
    return GuestException{x86::kDebugVector, std::nullopt, x86::kDr6SingleStep};
  }
  return std::nullopt;
}

Result<Completion> Retire(CompletionContext& context, const Instruction& instruction) {
  CpuRegisters& registers = context.registers();
  const uint64_t rflags = registers.rflags;
  registers.rip += instruction.length;
  context.SetFlags(x86::kFlagRf, 0);
  TRY(context.cpu().SetRegisters(registers));
  if (const auto trap = TrapAfter(instruction, rflags)) {
    TRY(context.cpu().Inject(*trap));
    return Completion{Outcome::kInjected, {}};
  }
  return Completion{Outcome::kCompleted, {}};
}

Result<Completion> EndWith(CompletionContext& context, const InstructionBytes& bytes) {
  CompletionContext::Stop& stop = context.stop();
  if (auto* error = std::get_if<Error>(&stop)) return std::move(*error);
  if (const auto* exception = std::get_if<GuestException>(&stop)) {
    TRY(context.cpu().Inject(*exception));
    return Completion{Outcome::kInjected, {}};
  }
  if (const auto* refused = std::get_if<CompletionContext::NotRecognised>(&stop)) {
    return Completion{Outcome::kNotRecognised, bytes.Text() + " (" + refused->why + ")"};
  }
  return Completion{Outcome::kCompleted, {}};  // Retry: RIP has not moved
}

}  // namespace

Result<Completion> CompleteInstruction(CpuAccess& cpu, const GuestMemory& memory,
                                       std::span<const uint8_t> fetched) {
  ASSIGN_OR_RETURN(CompletionContext context, CompletionContext::Create(cpu, memory));
  const CpuControl& control = context.control();
  if ((control.cr0 & x86::kCr0Pg) == 0 || (control.efer & x86::kEferLma) == 0 || !control.code64) {
    return Completion{Outcome::kNotRecognised, "code that does not run in 64-bit mode"};
  }
  InstructionBytes bytes;
  bytes.size = std::min(fetched.size(), bytes.data.size());
  std::copy_n(fetched.begin(), bytes.size, bytes.data.begin());
  Instruction instruction = {};
  if (!FetchAndDecode(context, bytes, instruction) || !Execute(context, instruction)) {
    return EndWith(context, bytes);
  }
  return Retire(context, instruction);
}

}  // namespace forklet
