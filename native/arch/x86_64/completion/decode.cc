#include "arch/x86_64/completion/decode.h"

#include <cstring>

namespace forklet {
namespace {

using Status = Decoded::Status;

// The prefix that selects an instruction among those that share an opcode.
enum class Mandatory : uint8_t { kNone, k66, kF2, kF3 };

// Reads bytes in order; past the end it says so once, and then reads zeros.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  uint8_t Next() {
    if (position_ >= bytes_.size()) {
      truncated_ = true;
      return 0;
    }
    return bytes_[position_++];
  }
  int32_t NextInt32() {
    if (bytes_.size() - position_ < sizeof(int32_t)) {
      truncated_ = true;
      return 0;
    }
    int32_t value;
    std::memcpy(&value, bytes_.data() + position_, sizeof value);
    position_ += sizeof value;
    return value;
  }
  bool truncated() const { return truncated_; }
  // Bounds: an instruction is at most kMaxInstructionBytes.
  uint8_t position() const { return static_cast<uint8_t>(position_); }

 private:
  std::span<const uint8_t> bytes_;
  size_t position_ = 0;
  bool truncated_ = false;
};

class Decoder {
 public:
  explicit Decoder(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  Decoded Run() {
    const uint8_t opcode = ReadPrefixes();
    const Status status = OneByte(opcode);
    if (bytes_.truncated()) return {Status::kTruncated, {}};
    if (status != Status::kInstruction) return {status, {}};
    instruction_.length = bytes_.position();
    instruction_.lock = lock_;
    instruction_.rex = rex_ != 0;
    instruction_.wide = wide();
    return {Status::kInstruction, instruction_};
  }

 private:
  bool wide() const { return (rex_ & 8) != 0; }
  uint8_t rex_reg() const { return (rex_ & 4) != 0 ? 8 : 0; }
  uint8_t rex_index() const { return (rex_ & 2) != 0 ? 8 : 0; }
  uint8_t rex_base() const { return (rex_ & 1) != 0 ? 8 : 0; }

  // Returns the opcode's first byte.
  uint8_t ReadPrefixes() {
    for (;;) {
      const uint8_t byte = bytes_.Next();
      switch (byte) {
        case 0x66:
          operand16_ = true;
          break;
        case 0x67:
          operand_.address32 = true;
          break;
        case 0xf0:
          lock_ = true;
          break;
        case 0xf2:
          repeat_ = Mandatory::kF2;
          break;
        case 0xf3:
          repeat_ = Mandatory::kF3;
          break;
        case 0x64:
          segment_ = MemoryOperand::Segment::kFs;
          break;
        case 0x65:
          segment_ = MemoryOperand::Segment::kGs;
          break;
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
          break;  // ES, CS, SS and DS have no base in 64-bit mode
        default:
          if ((byte & 0xf0) != 0x40) return byte;
          rex_ = byte;
          continue;
      }
      // A REX prefix counts only right before the opcode.
      rex_ = 0;
    }
  }

  // 66 counts only where F2 and F3 are absent.
  Mandatory mandatory() const {
    if (repeat_ != Mandatory::kNone) return repeat_;
    return operand16_ ? Mandatory::k66 : Mandatory::kNone;
  }

  Status Is(Operation operation, uint8_t operand_bytes) {
    instruction_.operation = operation;
    instruction_.operand_bytes = operand_bytes;
    return Status::kInstruction;
  }
  // With the operand size that REX.W and 66 choose.
  Status Is(Operation operation) { return Is(operation, wide() ? 8 : (operand16_ ? 2 : 4)); }

  Status OneByte(uint8_t opcode) {
    switch (opcode) {
      case 0x0f:
        return TwoByte(bytes_.Next());
      case 0x9b:
        return Is(Operation::kFwait);
      case 0xcc:
        return Is(Operation::kInt3);
      default:
        return Status::kNotRecognised;
    }
  }

  Status TwoByte(uint8_t opcode) {
    switch (opcode) {
      case 0x00:
        return Group6();
      case 0x01:
        return Group7();
      case 0x38:
        return ThreeByte(bytes_.Next());
      case 0xae:
        return Group15();
      case 0xb8:
        if (mandatory() != Mandatory::kF3) return Status::kNotRecognised;
        ReadModRm();
        return Is(Operation::kPopcnt);
      case 0xb9:
        ReadModRm();
        return Is(Operation::kUd);
      case 0xc7:
        return Group9();
      case 0xff:
        return Is(Operation::kUd);
      default:
        return Status::kNotRecognised;
    }
  }

  Status ThreeByte(uint8_t opcode) {
    if (mandatory() != Mandatory::kF2 || (opcode & 0xfe) != 0xf0) return Status::kNotRecognised;
    ReadModRm();
    return opcode == 0xf0 ? Is(Operation::kCrc32, 1) : Is(Operation::kCrc32);
  }

  Status Group6() {
    ReadModRm();
    switch (extension_) {
      case 4:
        return Is(Operation::kVerr, 2);
      case 5:
        return Is(Operation::kVerw, 2);
      default:
        return Status::kNotRecognised;
    }
  }

  // Only forms without operands: the whole ModRM byte is opcode.
  Status Group7() {
    const uint8_t byte = bytes_.Next();
    if (mandatory() != Mandatory::kNone) return Status::kNotRecognised;
    switch (byte) {
      case 0xca:
        return Is(Operation::kClac);
      case 0xcb:
        return Is(Operation::kStac);
      case 0xd0:
        return Is(Operation::kXgetbv);
      case 0xee:
        return Is(Operation::kRdpkru);
      case 0xef:
        return Is(Operation::kWrpkru);
      case 0xf9:
        return Is(Operation::kRdtscp);
      default:
        return Status::kNotRecognised;
    }
  }

  Status Group9() {
    ReadModRm();
    if (!instruction_.memory) return Status::kNotRecognised;
    if (extension_ == 1 && wide()) return Is(Operation::kCmpxchg16b, 8);
    if (extension_ == 4 && mandatory() == Mandatory::kNone) return Is(Operation::kXsavec);
    return Status::kNotRecognised;
  }

  Status Group15() {
    ReadModRm();
    if (!instruction_.memory || mandatory() != Mandatory::kNone) return Status::kNotRecognised;
    switch (extension_) {
      case 2:
        return Is(Operation::kLdmxcsr, 4);
      case 3:
        return Is(Operation::kStmxcsr, 4);
      case 4:
        return Is(Operation::kXsave);
      case 5:
        return Is(Operation::kXrstor);
      case 6:
        return Is(Operation::kXsaveopt);
      default:
        return Status::kNotRecognised;
    }
  }

  void ReadModRm() {
    const uint8_t byte = bytes_.Next();
    const uint8_t mode = byte >> 6;
    const uint8_t rm = byte & 7;
    extension_ = (byte >> 3) & 7;
    instruction_.reg = static_cast<uint8_t>(extension_ | rex_reg());
    if (mode == 3) {
      instruction_.rm = static_cast<uint8_t>(rm | rex_base());
      return;
    }
    ReadAddress(mode, rm);
    // RSP and RBP as a base address the stack segment, R12 and R13 do not.
    if (operand_.base == 4 || operand_.base == 5) {
      operand_.segment = MemoryOperand::Segment::kStack;
    }
    if (segment_ != MemoryOperand::Segment::kData) operand_.segment = segment_;
    instruction_.memory = operand_;
  }

  void ReadAddress(uint8_t mode, uint8_t rm) {
    // Encodings of RSP and RBP that mean something else here.
    constexpr uint8_t kSib = 4;
    constexpr uint8_t kNoIndex = 4;
    constexpr uint8_t kNoBase = 5;
    bool displacement32 = mode == 2;
    if (rm == kSib) {
      const uint8_t sib = bytes_.Next();
      const uint8_t index = static_cast<uint8_t>(((sib >> 3) & 7) | rex_index());
      const uint8_t base = sib & 7;
      if (index != kNoIndex) operand_.index = index;
      operand_.scale = sib >> 6;
      if (mode == 0 && base == kNoBase) {
        displacement32 = true;
      } else {
        operand_.base = static_cast<uint8_t>(base | rex_base());
      }
    } else if (mode == 0 && rm == kNoBase) {
      operand_.rip_relative = true;
      displacement32 = true;
    } else {
      operand_.base = static_cast<uint8_t>(rm | rex_base());
    }
    if (displacement32) {
      operand_.displacement = bytes_.NextInt32();
    } else if (mode == 1) {
      operand_.displacement = static_cast<int8_t>(bytes_.Next());
    }
  }

  ByteReader bytes_;
  Instruction instruction_ = {};
  MemoryOperand operand_;
  MemoryOperand::Segment segment_ = MemoryOperand::Segment::kData;  // Of a prefix
  Mandatory repeat_ = Mandatory::kNone;
  bool operand16_ = false;
  bool lock_ = false;
  uint8_t rex_ = 0;
  uint8_t extension_ = 0;  // ModRM.reg where it extends the opcode
};

}  // namespace

Decoded Decode(std::span<const uint8_t> bytes) {
  return Decoder(
             bytes.first(bytes.size() < kMaxInstructionBytes ? bytes.size() : kMaxInstructionBytes))
      .Run();
}

}  // namespace forklet
