#include "arch/x86_64/completion/operations.h"
#include "arch/x86_64/completion/x86.h"

namespace forklet {
namespace {

// ModRM.rm, zero-extended.
bool ReadSource(CompletionContext& context, const Instruction& instruction, uint64_t& value) {
  const uint8_t bytes = instruction.operand_bytes;
  if (!instruction.memory) {
    value = context.ReadRegister(instruction.rm, bytes, instruction.rex);
    return true;
  }
  GuestRange source(context, instruction);
  if (!source.Touch(0, bytes, MemoryAccess::kRead)) return false;
  value = 0;
  source.Read(0, {reinterpret_cast<uint8_t*>(&value), bytes});
  return true;
}

constexpr uint64_t kArithmeticFlags =
    x86::kFlagOf | x86::kFlagSf | x86::kFlagZf | x86::kFlagAf | x86::kFlagCf | x86::kFlagPf;

// CRC-32C, bit-reflected, of `bits` bits of data.
uint32_t Crc32c(uint32_t crc, uint64_t data, int bits) {
  constexpr uint32_t kPolynomial = 0x82f63b78;
  for (int i = 0; i < bits; ++i) {
    const bool carry = ((crc ^ data) & 1) != 0;
    crc = (crc >> 1) ^ (carry ? kPolynomial : 0);
    data >>= 1;
  }
  return crc;
}

}  // namespace

bool ExecutePopcnt(CompletionContext& context, const Instruction& instruction) {
  uint64_t source = 0;
  if (!ReadSource(context, instruction, source)) return false;
  context.WriteRegister(instruction.reg, instruction.operand_bytes,
                        static_cast<uint64_t>(__builtin_popcountll(source)));
  context.SetFlags(kArithmeticFlags, source == 0 ? x86::kFlagZf : 0);
  return true;
}

bool ExecuteCrc32(CompletionContext& context, const Instruction& instruction) {
  uint64_t source = 0;
  if (!ReadSource(context, instruction, source)) return false;
  const auto crc = static_cast<uint32_t>(context.registers().gpr[instruction.reg]);
  // The upper half of the destination is cleared, whatever its size.
  context.WriteRegister(instruction.reg, 4, Crc32c(crc, source, 8 * instruction.operand_bytes));
  return true;
}

bool ExecuteCmpxchg16b(CompletionContext& context, const Instruction& instruction) {
  constexpr uint64_t kBytes = 16;
  GuestRange target(context, instruction);
  // Read-only memory faults even when the comparison fails: the processor
  // always writes.
  if (!target.CheckAlignment(kBytes) || !target.Touch(0, kBytes, MemoryAccess::kWrite)) {
    return false;
  }
  auto& gpr = context.registers().gpr;
  bool equal = false;
  // The host's own instruction, since other vCPUs use the same memory; always
  // locked, which is stronger than what an unlocked one promises. Bounds:
  // aligned, so the 16 bytes are in one page.
  asm volatile("lock cmpxchg16b %[target]"
               : [target] "+m"(*reinterpret_cast<unsigned __int128*>(target.Host(0))),
                 "+a"(gpr[kRax]), "+d"(gpr[kRdx]), "=@ccz"(equal)
               : "b"(gpr[kRbx]), "c"(gpr[kRcx])
               : "memory");
  context.SetFlags(x86::kFlagZf, equal ? x86::kFlagZf : 0);
  return true;
}

}  // namespace forklet
