#include "arch/x86_64/completion/context.h"

#include <algorithm>
#include <cstring>

#include "arch/x86_64/completion/x86.h"
#include "arch/x86_64/completion/xsave_area.h"
#include "arch/x86_64/layout.h"

namespace forklet {

Result<CompletionContext> CompletionContext::Create(CpuAccess& cpu, const GuestMemory& memory) {
  CompletionContext context(cpu, memory);
  ASSIGN_OR_RETURN(context.registers_, cpu.GetRegisters());
  ASSIGN_OR_RETURN(context.control_, cpu.GetControl());
  return context;
}

bool CompletionContext::GetXcr0(uint64_t& xcr0) {
  auto result = cpu_->GetXcr0();
  if (!result.ok()) return End(std::move(result).error());
  xcr0 = result.value();
  return true;
}

bool CompletionContext::GetMsr(uint32_t index, uint64_t& value) {
  auto result = cpu_->GetMsr(index);
  if (!result.ok()) return End(std::move(result).error());
  value = result.value();
  return true;
}

bool CompletionContext::GetXsave(std::span<uint8_t>& area) {
  if (!xsave_) {
    auto result = cpu_->GetXsave();
    if (!result.ok()) return End(std::move(result).error());
    if (result.value().size() < kXsaveMinBytes) {
      return End(Error{ErrorCode::kInternal,
                       0,
                       {},
                       "an XSAVE area of " + std::to_string(result.value().size()) + " bytes"});
    }
    xsave_ = result.value();
  }
  area = *xsave_;
  return true;
}

bool CompletionContext::SetXsave() {
  auto result = cpu_->SetXsave();
  if (!result.ok()) return End(std::move(result).error());
  return true;
}

bool CompletionContext::Translate(uint64_t address, MemoryAccess access, bool stack,
                                  uint8_t*& host) {
  uint32_t pkru = 0;
  if ((control_.cr4 & x86::kCr4Pke) != 0) {
    std::span<uint8_t> area;
    if (!GetXsave(area)) return false;
    pkru = XsaveArea(area).Pkru();
  }
  const PageTranslation page =
      PageWalker(*memory_, control_, registers_.rflags, pkru).Translate(address, access);
  switch (page.status) {
    case PageTranslation::Status::kOk:
      host = page.host;
      return true;
    case PageTranslation::Status::kPageFault:
      return End(GuestException{x86::kPageFaultVector, page.error_code, address});
    case PageTranslation::Status::kNotCanonical:
      return RaiseWithCode(stack ? x86::kStackVector : x86::kProtectionVector, 0);
    case PageTranslation::Status::kRetry:
      return End(Retry{});
    case PageTranslation::Status::kNotRam:
      break;
  }
  return RefuseBecause("its operand is not in RAM");
}

uint64_t CompletionContext::ReadRegister(uint8_t number, uint8_t bytes, bool rex) const {
  // Without REX, byte registers 4 to 7 are AH, CH, DH and BH.
  if (bytes == 1 && !rex && number >= 4 && number < 8) {
    return (registers_.gpr[number - 4u] >> 8) & 0xff;
  }
  const uint64_t value = registers_.gpr[number];
  return bytes == 8 ? value : value & ((uint64_t{1} << (8 * bytes)) - 1);
}

void CompletionContext::WriteRegister(uint8_t number, uint8_t bytes, uint64_t value) {
  uint64_t& target = registers_.gpr[number];
  switch (bytes) {
    case 2:
      target = (target & ~uint64_t{0xffff}) | (value & 0xffff);
      break;
    case 4:
      target = value & 0xffffffff;
      break;
    default:
      target = value;
      break;
  }
}

void CompletionContext::SetFlags(uint64_t mask, uint64_t values) {
  registers_.rflags = (registers_.rflags & ~mask) | values;
}

uint64_t EffectiveAddress(const CompletionContext& context, const Instruction& instruction) {
  const MemoryOperand& operand = *instruction.memory;
  const CpuRegisters& registers = context.registers();
  auto address = static_cast<uint64_t>(int64_t{operand.displacement});
  if (operand.rip_relative) address += registers.rip + instruction.length;
  if (operand.base) address += registers.gpr[*operand.base];
  if (operand.index) address += registers.gpr[*operand.index] << operand.scale;
  if (operand.address32) address &= 0xffffffff;
  if (operand.segment == MemoryOperand::Segment::kFs) address += context.control().fs_base;
  if (operand.segment == MemoryOperand::Segment::kGs) address += context.control().gs_base;
  return address;
}

GuestRange::GuestRange(CompletionContext& context, const Instruction& instruction)
    : GuestRange(context, EffectiveAddress(context, instruction),
                 instruction.memory->segment == MemoryOperand::Segment::kStack) {}

bool GuestRange::CheckAlignment(uint64_t alignment) {
  return address_ % alignment == 0 || context_.RaiseProtection();
}

bool GuestRange::Touch(uint64_t offset, uint64_t size, MemoryAccess access) {
  CHECK(size > 0);
  if (offset + size > kMaxBytes) return context_.RefuseBecause("its operand is too large");
  const uint64_t in_page = address_ % layout::kPageSize;
  const uint64_t first = (in_page + offset) / layout::kPageSize;
  const uint64_t last = (in_page + offset + size - 1) / layout::kPageSize;
  for (uint64_t page = first; page <= last; ++page) {
    if (pages_[page] != nullptr) continue;
    // The lowest byte that is wanted: what CR2 shows if the page is absent.
    const uint64_t start = std::max(in_page + offset, page * layout::kPageSize) - in_page;
    uint8_t* host = nullptr;
    if (!context_.Translate(address_ + start, access, stack_, host)) return false;
    pages_[page] = host - (in_page + start) % layout::kPageSize;
  }
  return true;
}

uint8_t* GuestRange::Host(uint64_t offset) const {
  const uint64_t position = address_ % layout::kPageSize + offset;
  return pages_[position / layout::kPageSize] + position % layout::kPageSize;
}

void GuestRange::Read(uint64_t offset, std::span<uint8_t> out) const {
  while (!out.empty()) {
    const uint64_t room = layout::kPageSize - (address_ + offset) % layout::kPageSize;
    const size_t count = std::min<uint64_t>(out.size(), room);
    std::memcpy(out.data(), Host(offset), count);
    out = out.subspan(count);
    offset += count;
  }
}

void GuestRange::Write(uint64_t offset, std::span<const uint8_t> data) const {
  while (!data.empty()) {
    const uint64_t room = layout::kPageSize - (address_ + offset) % layout::kPageSize;
    const size_t count = std::min<uint64_t>(data.size(), room);
    std::memcpy(Host(offset), data.data(), count);
    data = data.subspan(count);
    offset += count;
  }
}

}  // namespace forklet
