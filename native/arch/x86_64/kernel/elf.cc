#include "arch/x86_64/kernel/elf.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "arch/x86_64/layout.h"

namespace forklet {
namespace {

// A vmlinux has about six. More than this is not a kernel, and the check for
// overlaps is quadratic.
constexpr uint16_t kMaxProgramHeaders = 128;

std::string MachineName(uint16_t machine) {
  switch (machine) {
    case EM_386:
      return "Intel 80386";
    case EM_ARM:
      return "ARM";
    case EM_AARCH64:
      return "AArch64";
    case EM_RISCV:
      return "RISC-V";
    case EM_PPC64:
      return "PowerPC64";
    case EM_S390:
      return "S/390";
    case EM_MIPS:
      return "MIPS";
    default:
      return Hex(machine);
  }
}

std::string TypeName(uint16_t type) {
  switch (type) {
    case ET_REL:
      return "a relocatable object";
    case ET_DYN:
      return "a shared object or position-independent executable";
    case ET_CORE:
      return "a core dump";
    default:
      return "type " + Hex(type);
  }
}

std::string SegmentName(const Elf64_Phdr& segment) {
  return "segment at " + Hex(segment.p_paddr) + ", size " + Hex(segment.p_memsz);
}

Result<Elf64_Ehdr> ReadHeader(const ImageSource& source) {
  Elf64_Ehdr header;
  // The identification comes first: a 32-bit header is shorter, and shall be
  // called by its name.
  unsigned char ident[EI_NIDENT];
  TRY(source.ReadObject(0, ident));
  if (std::memcmp(ident, ELFMAG, SELFMAG) != 0) {
    return BadKernel(source.name(), "not an ELF file");
  }
  if (ident[EI_CLASS] != ELFCLASS64) {
    return BadKernel(source.name(), ident[EI_CLASS] == ELFCLASS32
                                        ? "a 32-bit ELF file; an x86-64 kernel is needed"
                                        : "ELF class " + Hex(ident[EI_CLASS]) + " is unknown");
  }
  if (ident[EI_DATA] != ELFDATA2LSB) {
    return BadKernel(source.name(), "not a little-endian ELF file");
  }
  TRY(source.ReadObject(0, header));
  if (header.e_machine != EM_X86_64) {
    return BadKernel(source.name(), "wrong machine '" + MachineName(header.e_machine) +
                                        "'; an x86-64 kernel is needed");
  }
  if (header.e_type != ET_EXEC) {
    return BadKernel(source.name(), "not an ELF executable but " + TypeName(header.e_type) +
                                        "; the vmlinux of a kernel build is needed");
  }
  if (header.e_version != EV_CURRENT) {
    return BadKernel(source.name(), "ELF version " + Hex(header.e_version) + " is unknown");
  }
  if (header.e_phentsize != sizeof(Elf64_Phdr)) {
    return BadKernel(source.name(), "program headers of " + std::to_string(header.e_phentsize) +
                                        " bytes; they have " + std::to_string(sizeof(Elf64_Phdr)));
  }
  if (header.e_phnum == 0 || header.e_phnum > kMaxProgramHeaders) {
    return BadKernel(source.name(), std::to_string(header.e_phnum) + " program headers; 1 to " +
                                        std::to_string(kMaxProgramHeaders) + " are accepted");
  }
  return header;
}

// Everything about one PT_LOAD that needs no other.
Status CheckSegment(const ImageSource& source, const Elf64_Phdr& segment, GuestAddress low_end) {
  if (segment.p_filesz > segment.p_memsz) {
    return BadKernel(source.name(), SegmentName(segment) + ": larger in the file (" +
                                        Hex(segment.p_filesz) + ") than in memory");
  }
  // Bounds: both checks are written so that no sum can overflow.
  if (segment.p_offset > source.size() || segment.p_filesz > source.size() - segment.p_offset) {
    return BadKernel(source.name(), "truncated: " + SegmentName(segment) + " needs " +
                                        Hex(segment.p_filesz) + " bytes at offset " +
                                        Hex(segment.p_offset) + ", but it ends at " +
                                        Hex(source.size()));
  }
  if (segment.p_paddr < layout::kHighRam.value) {
    return BadKernel(source.name(), SegmentName(segment) + " lies below 1 MiB");
  }
  if (segment.p_paddr > low_end.value || segment.p_memsz > low_end.value - segment.p_paddr) {
    return BadKernel(source.name(), SegmentName(segment) + " lies outside the " +
                                        std::to_string(low_end.value >> 20) +
                                        " MiB of guest memory below the MMIO hole");
  }
  return Ok();
}

Result<std::vector<Elf64_Phdr>> ReadSegments(const ImageSource& source, const Elf64_Ehdr& header,
                                             GuestAddress low_end) {
  std::vector<Elf64_Phdr> headers(header.e_phnum);
  TRY(source.Read(header.e_phoff, {reinterpret_cast<uint8_t*>(headers.data()),
                                   headers.size() * sizeof(Elf64_Phdr)}));
  std::erase_if(headers, [](const Elf64_Phdr& segment) {
    return segment.p_type != PT_LOAD || segment.p_memsz == 0;
  });
  if (headers.empty()) return BadKernel(source.name(), "no segment to load");
  for (const Elf64_Phdr& segment : headers) TRY(CheckSegment(source, segment, low_end));

  std::sort(headers.begin(), headers.end(),
            [](const Elf64_Phdr& a, const Elf64_Phdr& b) { return a.p_paddr < b.p_paddr; });
  for (size_t i = 1; i < headers.size(); ++i) {
    const Elf64_Phdr& previous = headers[i - 1];
    if (headers[i].p_paddr - previous.p_paddr < previous.p_memsz) {
      return BadKernel(source.name(),
                       SegmentName(previous) + " overlaps the " + SegmentName(headers[i]));
    }
  }
  return headers;
}

}  // namespace

bool IsElf(std::span<const uint8_t> start) {
  return start.size() >= SELFMAG && std::memcmp(start.data(), ELFMAG, SELFMAG) == 0;
}

Status CheckElfHeader(const ImageSource& source) {
  TRY(ReadHeader(source));
  return Ok();
}

Result<LoadedElf> LoadElf(const ImageSource& source, const GuestMemory& memory) {
  ASSIGN_OR_RETURN(const Elf64_Ehdr header, ReadHeader(source));
  ASSIGN_OR_RETURN(const std::vector<Elf64_Phdr> segments,
                   ReadSegments(source, header, memory.low_end()));

  const bool entry_is_loaded =
      std::any_of(segments.begin(), segments.end(), [&](const Elf64_Phdr& segment) {
        return header.e_entry >= segment.p_paddr &&
               header.e_entry - segment.p_paddr < segment.p_filesz;
      });
  if (!entry_is_loaded) {
    return BadKernel(source.name(),
                     "its entry point " + Hex(header.e_entry) + " lies in no loaded segment");
  }

  for (const Elf64_Phdr& segment : segments) {
    uint8_t* host = memory.Range(GuestAddress{segment.p_paddr}, segment.p_filesz);
    CHECK(host != nullptr);  // CheckSegment saw to it
    TRY(source.Read(segment.p_offset, {host, segment.p_filesz}));
  }
  // Bounds: ends at or below low_end, which is page-aligned.
  const uint64_t end = segments.back().p_paddr + segments.back().p_memsz;
  return LoadedElf{GuestAddress{header.e_entry},
                   GuestAddress{(end + layout::kPageSize - 1) & ~(layout::kPageSize - 1)}};
}

}  // namespace forklet
