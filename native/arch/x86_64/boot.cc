#include "arch/x86_64/boot.h"

#include <asm/bootparam.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "arch/x86_64/kernel/kernel_image.h"
#include "arch/x86_64/layout.h"
#include "base/mutant.h"

namespace forklet {

namespace {

// arch/x86/include/asm/cpufeatures.h has no UAPI; names as in the SDM.
constexpr uint64_t kCr0Pe = 1u << 0;
constexpr uint64_t kCr0Et = 1u << 4;
constexpr uint64_t kCr0Pg = 1u << 31;
constexpr uint64_t kCr4Pae = 1u << 5;
constexpr uint64_t kEferLme = 1u << 8;
constexpr uint64_t kEferLma = 1u << 10;

constexpr uint64_t kPagePresent = 1u << 0;
constexpr uint64_t kPageWritable = 1u << 1;
constexpr uint64_t kPageLarge = 1u << 7;
constexpr uint64_t kLargePageSize = 2u << 20;
constexpr uint64_t kEntriesPerTable = 512;
constexpr uint64_t kPageDirectories = 4;  // 4 GiB mapped one to one

// __BOOT_CS and __BOOT_DS of the protocol.
constexpr uint16_t kBootCs = 0x10;
constexpr uint16_t kBootDs = 0x18;

constexpr uint32_t kMsrMiscEnable = 0x1a0;
constexpr uint64_t kMiscEnableFastString = 1u << 0;
// AMD's HWCR (APM volume 2, MSR C001_0015), which Linux looks at.
constexpr uint32_t kMsrHardwareConfiguration = 0xc0010015;
constexpr uint64_t kTscCountsAtP0 = uint64_t{1} << 24;
constexpr uint32_t kMsrMtrrDefType = 0x2ff;
constexpr uint64_t kMtrrEnabled = 1u << 11;
constexpr uint64_t kMtrrWriteBack = 6;

constexpr uint32_t kE820Ram = 1;
constexpr uint32_t kE820Reserved = 2;

constexpr uint32_t kBootFlag = 0xaa55;
constexpr uint32_t kHeaderMagic = 0x53726448;  // "HdrS"
constexpr uint8_t kUnregisteredLoader = 0xff;

// What unpacking needs besides the archive itself and its contents, in bytes:
// the kernel's own early allocations.
constexpr uint64_t kUnpackReserve = 8u << 20;

// Guest memory is at least 32 MiB, and everything that this file writes lies in
// its first MiB: a failure is a bug of ours.
template <class T>
void Put(const GuestMemory& memory, GuestAddress address, const T& value) {
  CHECK(memory.WriteObject(address, value));
}

void WritePageTables(const GuestMemory& memory) {
  const GuestAddress pml4 = layout::kPageTables;
  const GuestAddress pdpt = pml4 + layout::kPageSize;
  const GuestAddress directories = pdpt + layout::kPageSize;
  constexpr uint64_t kTableFlags = kPagePresent | kPageWritable;
  Put(memory, pml4, pdpt.value | kTableFlags);
  for (uint64_t i = 0; i < kPageDirectories; ++i) {
    Put(memory, pdpt + 8 * i, (directories.value + i * layout::kPageSize) | kTableFlags);
  }
  for (uint64_t i = 0; i < kPageDirectories * kEntriesPerTable; ++i) {
    Put(memory, directories + 8 * i, (i * kLargePageSize) | kTableFlags | kPageLarge);
  }
}

// A flat segment, as GDT descriptor and as KVM wants it.
kvm_segment FlatSegment(uint16_t selector, uint8_t type, bool code) {
  kvm_segment segment = {};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  segment.l = code ? 1 : 0;
  segment.db = code ? 0 : 1;
  return segment;
}

uint64_t Descriptor(const kvm_segment& segment) {
  const uint64_t access = static_cast<uint64_t>(segment.type | segment.s << 4 | segment.dpl << 5 |
                                                segment.present << 7);
  const uint64_t flags = static_cast<uint64_t>(segment.l << 1 | segment.db << 2 | segment.g << 3);
  return 0xffffu | access << 40 | 0xfULL << 48 | flags << 52;
}

constexpr uint8_t kCodeReadAccessed = 0xb;
constexpr uint8_t kDataWriteAccessed = 0x3;

void WriteGdt(const GuestMemory& memory) {
  Put(memory, layout::kGdt + kBootCs, Descriptor(FlatSegment(kBootCs, kCodeReadAccessed, true)));
  Put(memory, layout::kGdt + kBootDs, Descriptor(FlatSegment(kBootDs, kDataWriteAccessed, false)));
}

void AddE820(boot_params& params, uint64_t start, uint64_t end, uint32_t type) {
  boot_e820_entry& entry = params.e820_table[params.e820_entries++];
  entry.addr = start;
  entry.size = end - start;
  entry.type = type;
}

}  // namespace

Result<InitramfsRange> LoadInitramfs(const GuestMemory& memory,
                                     const std::vector<std::vector<uint8_t>>& segments,
                                     GuestAddress kernel_end) {
  InitramfsRange range;
  for (const auto& segment : segments) range.size += segment.size();
  if (range.size == 0) return range;
  const uint64_t top = memory.low_end().value;
  // The archive and its unpacked contents exist side by side for a moment.
  if (kernel_end.value + kUnpackReserve > top ||
      2 * range.size > top - kernel_end.value - kUnpackReserve) {
    return Error{ErrorCode::kNoMemory,
                 0,
                 {},
                 "the root file system of " + std::to_string(range.size) +
                     " bytes does not fit into " + std::to_string(memory.bytes()) +
                     " bytes of guest memory, where it needs twice its size beside the kernel: "
                     "raise `memoryBytes`"};
  }
  range.start = GuestAddress{(top - range.size) & ~(layout::kPageSize - 1)};
  GuestAddress next = range.start;
  for (const auto& segment : segments) {
    CHECK(memory.Write(next, segment));
    next = next + segment.size();
  }
  return range;
}

void WriteBootParameters(const GuestMemory& memory, const std::string& command_line,
                         const InitramfsRange& initramfs,
                         const std::vector<uint8_t>& setup_header) {
  CHECK(command_line.size() < layout::kCommandLineBytes);
  CHECK(memory.Write(layout::kCommandLine, {reinterpret_cast<const uint8_t*>(command_line.c_str()),
                                            command_line.size() + 1}));

  boot_params params = {};
  static_assert(offsetof(boot_params, hdr) == kSetupHeaderOffset);
  // Bounds: a header of a later protocol is longer than the one that we know.
  std::copy_n(setup_header.data(), std::min(setup_header.size(), sizeof params.hdr),
              reinterpret_cast<uint8_t*>(&params.hdr));
  params.hdr.boot_flag = kBootFlag;
  params.hdr.header = kHeaderMagic;
  params.hdr.type_of_loader = kUnregisteredLoader;
  params.hdr.kernel_alignment = 0x1000000;
  params.hdr.cmd_line_ptr = static_cast<uint32_t>(layout::kCommandLine.value);
  params.hdr.cmdline_size = static_cast<uint32_t>(command_line.size());
  params.hdr.ramdisk_image = static_cast<uint32_t>(initramfs.start.value);
  params.hdr.ramdisk_size = static_cast<uint32_t>(initramfs.size);
  AddE820(params, 0, layout::kLowRamEnd.value, kE820Ram);
  AddE820(params, layout::kLowRamEnd.value, layout::kHighRam.value, kE820Reserved);
  AddE820(params, layout::kHighRam.value, memory.low_end().value, kE820Ram);
  for (size_t i = 1; i < memory.regions().size(); ++i) {
    const MemoryRegion& region = memory.regions()[i];
    AddE820(params, region.start.value, region.start.value + region.size, kE820Ram);
  }
  params.acpi_rsdp_addr = layout::kRsdp.value;
  Put(memory, layout::kZeroPage, params);

  WritePageTables(memory);
  WriteGdt(memory);
}

Status SetBootRegisters(const VcpuFd& vcpu, GuestAddress entry) {
  ASSIGN_OR_RETURN(kvm_sregs sregs, vcpu.GetSregs());
  const kvm_segment data = FlatSegment(kBootDs, kDataWriteAccessed, false);
  sregs.cs = FlatSegment(kBootCs, kCodeReadAccessed, true);
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  // A busy 64-bit TSS, which VMX insists on; never used.
  sregs.tr = {};
  sregs.tr.limit = 0x67;
  sregs.tr.type = 0xb;
  sregs.tr.present = 1;
  sregs.gdt.base = layout::kGdt.value;
  sregs.gdt.limit = kBootDs + 7;
  sregs.idt.base = 0;
  sregs.idt.limit = 0;
  sregs.cr0 = kCr0Pe | kCr0Et | kCr0Pg;
  sregs.cr3 = layout::kPageTables.value;
  sregs.cr4 = kCr4Pae;
  sregs.efer = kEferLme | kEferLma;
  TRY(vcpu.SetSregs(sregs));

  kvm_regs regs = {};
  regs.rflags = 2;  // Bit 1 is always set; interrupts are off
  regs.rip = entry.value;
  regs.rsp = regs.rbp = layout::kBootStack.value;
  regs.rsi = layout::kZeroPage.value;
  return vcpu.SetRegs(regs);
}

Status SetBootMsrs(const VcpuFd& vcpu) {
  if (kMutant == Mutant::kNoBootMsrs) return Ok();
  kvm_msr_entry entries[2] = {};
  entries[0].index = kMsrMiscEnable;
  entries[0].data = kMiscEnableFastString;
  entries[1].index = kMsrMtrrDefType;
  entries[1].data = kMtrrEnabled | kMtrrWriteBack;
  TRY(vcpu.SetMsrs(entries));
  // Linux 6.7's KVM has this bit; with an earlier one, a guest on an AMD processor
  // complains about its firmware and goes on.
  kvm_msr_entry hardware = {};
  hardware.index = kMsrHardwareConfiguration;
  hardware.data = kTscCountsAtP0;
  static_cast<void>(vcpu.SetMsrs({&hardware, 1}));
  return Ok();
}

Status SetBootLapic(const VcpuFd& vcpu) {
  if (kMutant == Mutant::kNoLocalPins) return Ok();
  // Offsets of the APIC's registers (SDM volume 3, table 11-1) and delivery
  // modes: LINT0 takes the PIC's interrupts, LINT1 is NMI.
  constexpr size_t kLvtLint0 = 0x350;
  constexpr size_t kLvtLint1 = 0x360;
  constexpr uint32_t kDeliveryMask = 0x700;
  constexpr uint32_t kDeliverNmi = 0x400;
  constexpr uint32_t kDeliverExtInt = 0x700;
  ASSIGN_OR_RETURN(kvm_lapic_state lapic, vcpu.GetLapic());
  const auto set_mode = [&](size_t offset, uint32_t mode) {
    uint32_t value;
    std::memcpy(&value, lapic.regs + offset, sizeof value);
    value = (value & ~kDeliveryMask) | mode;
    std::memcpy(lapic.regs + offset, &value, sizeof value);
  };
  set_mode(kLvtLint0, kDeliverExtInt);
  set_mode(kLvtLint1, kDeliverNmi);
  return vcpu.SetLapic(lapic);
}

Status SetBootXcr0(const VcpuFd& vcpu, uint64_t components) {
  if (kMutant == Mutant::kNoXcr0) return Ok();
  kvm_xcrs xcrs = {};
  xcrs.nr_xcrs = 1;
  xcrs.xcrs[0].xcr = 0;
  xcrs.xcrs[0].value = components;
  return vcpu.SetXcrs(xcrs);
}

}  // namespace forklet
