#pragma once

#include <cstdint>
#include <span>

#include "arch/x86_64/kernel/image_source.h"
#include "base/result.h"
#include "memory/guest_address.h"
#include "memory/guest_memory.h"

namespace forklet {

struct LoadedElf {
  GuestAddress entry;
  GuestAddress end;  // First page-aligned address behind every segment
};

bool IsElf(std::span<const uint8_t> start);

// Refuses whatever is not a 64-bit x86-64 executable, by its ELF header alone.
Status CheckElfHeader(const ImageSource& source);

// Checks all of an ELF vmlinux, then reads its PT_LOAD segments to their
// physical addresses.
Result<LoadedElf> LoadElf(const ImageSource& source, const GuestMemory& memory);

}  // namespace forklet
