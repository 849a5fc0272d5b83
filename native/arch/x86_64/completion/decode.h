#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace forklet {

// The instructions that we complete; docs/instruction-completion.md says why
// these.
enum class Operation : uint8_t {
  kClac,
  kCmpxchg16b,
  kCrc32,
  kFwait,
  kInt3,
  kLdmxcsr,
  kPopcnt,
  kRdpkru,
  kRdtscp,
  kStac,
  kStmxcsr,
  kUd,  // UD0 and UD1, which software uses to raise #UD
  kVerr,
  kVerw,
  kWrpkru,
  kXgetbv,
  kXrstor,
  kXsave,
  kXsavec,
  kXsaveopt,
};

struct MemoryOperand {
  enum class Segment : uint8_t { kData, kStack, kFs, kGs };

  std::optional<uint8_t> base;   // Register
  std::optional<uint8_t> index;  // Register
  uint8_t scale = 0;             // Of the index, as a shift
  bool rip_relative = false;     // To the end of the instruction
  bool address32 = false;        // The sum is truncated to 32 bits
  int32_t displacement = 0;
  Segment segment = Segment::kData;
};

struct Instruction {
  Operation operation;
  uint8_t length;                       // In bytes
  uint8_t operand_bytes;                // 1, 2, 4 or 8
  bool lock = false;                    // LOCK prefix
  bool rex = false;                     // Byte registers 4 to 7 are SPL, BPL, SIL, DIL
  bool wide = false;                    // REX.W
  uint8_t reg = 0;                      // ModRM.reg
  uint8_t rm = 0;                       // ModRM.rm, when there is no memory operand
  std::optional<MemoryOperand> memory;  // ModRM.rm otherwise
};

struct Decoded {
  enum class Status : uint8_t {
    kInstruction,
    kNotRecognised,
    kTruncated,  // It goes on behind the bytes that were given
  };
  Status status;
  Instruction instruction;  // When status is kInstruction
};

// The architecture's limit on an instruction's length, in bytes.
inline constexpr uint8_t kMaxInstructionBytes = 15;

// Decodes the instruction at the start of `bytes`, as 64-bit mode does.
Decoded Decode(std::span<const uint8_t> bytes);

}  // namespace forklet
