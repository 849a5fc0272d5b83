#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>

#include "arch/x86_64/completion/cpu_access.h"
#include "arch/x86_64/completion/decode.h"
#include "arch/x86_64/completion/page_walk.h"
#include "base/result.h"
#include "memory/guest_memory.h"

namespace forklet {

// One instruction on its way to completion: the vCPU's state, fetched when it
// is first asked for, and how the instruction ended if it did not retire.
//
// Every bool below is false when the instruction is over: the caller returns at
// once, having changed nothing yet.
class CompletionContext {
 public:
  // Nothing was changed, and KVM is to try the instruction again.
  struct Retry {};
  struct NotRecognised {
    std::string why;
  };
  using Stop = std::variant<GuestException, NotRecognised, Retry, Error>;

  static Result<CompletionContext> Create(CpuAccess& cpu, const GuestMemory& memory);

  CpuAccess& cpu() const { return *cpu_; }
  const CpuControl& control() const { return control_; }
  // As the guest had them, until the instruction changes them. RIP stays that
  // of the instruction.
  CpuRegisters& registers() { return registers_; }
  const CpuRegisters& registers() const { return registers_; }

  [[nodiscard]] bool GetXcr0(uint64_t& xcr0);
  [[nodiscard]] bool GetMsr(uint32_t index, uint64_t& value);
  // The XSAVE area in standard format; at least its legacy region and header.
  [[nodiscard]] bool GetXsave(std::span<uint8_t>& area);
  [[nodiscard]] bool SetXsave();

  [[nodiscard]] bool Translate(uint64_t address, MemoryAccess access, bool stack, uint8_t*& host);

  // All of these end the instruction, and return false.
  bool Raise(uint8_t vector) { return End(GuestException{vector, std::nullopt}); }
  bool RaiseWithCode(uint8_t vector, uint32_t code) { return End(GuestException{vector, code}); }
  bool RaiseProtection() { return RaiseWithCode(13, 0); }
  bool RaiseUndefined() { return Raise(6); }
  bool RefuseBecause(std::string why) { return End(NotRecognised{std::move(why)}); }

  // How it ended. Prerequisite: something returned false.
  Stop& stop() { return *stop_; }

  // Operand size and register file: a write of 4 bytes clears the upper half.
  uint64_t ReadRegister(uint8_t number, uint8_t bytes, bool rex) const;
  void WriteRegister(uint8_t number, uint8_t bytes, uint64_t value);
  void SetFlags(uint64_t mask, uint64_t values);

 private:
  CompletionContext(CpuAccess& cpu, const GuestMemory& memory) : cpu_(&cpu), memory_(&memory) {}
  bool End(Stop stop) {
    stop_ = std::move(stop);
    return false;
  }

  CpuAccess* cpu_;             // Lifetime: the caller's
  const GuestMemory* memory_;  // Lifetime: the caller's
  CpuRegisters registers_ = {};
  CpuControl control_ = {};
  std::optional<std::span<uint8_t>> xsave_;
  std::optional<Stop> stop_;
};

// A range of guest-virtual memory, page by page: nothing is read or written
// before all of it that the instruction touches has been translated, so that a
// page fault leaves no half-done work.
class GuestRange {
 public:
  // More than the largest XSAVE area, which is not page-aligned.
  static constexpr size_t kMaxPages = 5;
  static constexpr uint64_t kMaxBytes = (kMaxPages - 1) * 4096;

  GuestRange(CompletionContext& context, uint64_t address, bool stack)
      : context_(context), address_(address), stack_(stack) {}
  GuestRange(CompletionContext& context, const Instruction& instruction);

  uint64_t address() const { return address_; }

  // Ends the instruction with #GP when the address is no multiple.
  [[nodiscard]] bool CheckAlignment(uint64_t alignment);
  // Translates the pages of [offset, offset + size), with size > 0.
  [[nodiscard]] bool Touch(uint64_t offset, uint64_t size, MemoryAccess access);

  // Prerequisite of these: the bytes were touched, for writing where they are
  // written.
  void Read(uint64_t offset, std::span<uint8_t> out) const;
  void Write(uint64_t offset, std::span<const uint8_t> data) const;
  // Of a byte; valid up to the end of its page.
  uint8_t* Host(uint64_t offset) const;

 private:
  CompletionContext& context_;
  uint64_t address_;
  bool stack_;                      // Addressed through SS
  uint8_t* pages_[kMaxPages] = {};  // By page, from that of address_ on
};

// The sum of an operand's parts, its segment's base included.
uint64_t EffectiveAddress(const CompletionContext& context, const Instruction& instruction);

}  // namespace forklet
