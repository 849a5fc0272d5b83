// What each instruction does. All return true when it retires with the
// context's registers, and false when the context says how it ended instead.
#pragma once

#include "arch/x86_64/completion/context.h"
#include "arch/x86_64/completion/decode.h"

namespace forklet {

// integer.cc
[[nodiscard]] bool ExecuteCmpxchg16b(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecuteCrc32(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecutePopcnt(CompletionContext& context, const Instruction& instruction);

// fpu.cc
[[nodiscard]] bool ExecuteFwait(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecuteLdmxcsr(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecuteStmxcsr(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecuteXgetbv(CompletionContext& context, const Instruction& instruction);

// xsave.cc
[[nodiscard]] bool ExecuteXsave(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecuteXsavec(CompletionContext& context, const Instruction& instruction);

// xrstor.cc
[[nodiscard]] bool ExecuteXrstor(CompletionContext& context, const Instruction& instruction);

// system.cc
[[nodiscard]] bool ExecuteClacStac(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecutePkru(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecuteRdtscp(CompletionContext& context, const Instruction& instruction);
[[nodiscard]] bool ExecuteVerify(CompletionContext& context, const Instruction& instruction);

// The checks that all of the XSAVE family begin with. `rfbm` becomes the
// components that are both enabled and asked for.
[[nodiscard]] bool BeginXsave(CompletionContext& context, GuestRange& area, uint64_t& xcr0,
                              uint64_t& rfbm);

}  // namespace forklet
