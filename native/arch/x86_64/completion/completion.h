#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "arch/x86_64/completion/cpu_access.h"
#include "base/result.h"
#include "memory/guest_memory.h"

namespace forklet {

// What became of an instruction that KVM's emulator refused.
struct Completion {
  enum class Outcome : uint8_t {
    kCompleted,      // Done; RIP is behind it
    kInjected,       // The guest takes an exception, as a processor would have raised
    kNotRecognised,  // Not one that we complete; nothing was changed
  };
  Outcome outcome;
  // Of what was not recognised: its bytes and why, for error texts.
  std::string description;
};

// Completes the instruction at RIP, which KVM's emulator refused
// (KVM_EXIT_INTERNAL_ERROR, suberror KVM_INTERNAL_ERROR_EMULATION), with the
// effects and exceptions that the processor would have had. Which ones, and
// why: docs/instruction-completion.md.
//
// `fetched` is the start of the instruction as KVM fetched it, or empty when it
// does not say. It is preferred to what memory holds now: another vCPU may be
// patching this very code, and then what was refused is the breakpoint that it
// had put there.
//
// The guest may be hostile: its registers, page tables and operands are read
// once, and all work is bounded. Fails only when `cpu` does.
//
// Thread: the vCPU's, while it is outside KVM_RUN.
Result<Completion> CompleteInstruction(CpuAccess& cpu, const GuestMemory& memory,
                                       std::span<const uint8_t> fetched);

}  // namespace forklet
