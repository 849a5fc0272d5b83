#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "arch/x86_64/kernel/image_source.h"
#include "base/result.h"

namespace forklet {

// What the x86 boot protocol (Documentation/arch/x86/boot.rst) says of a
// bzImage.
struct BzImage {
  uint64_t payload_offset;  // In the file
  uint64_t payload_size;    // In bytes, inside the file
  std::vector<uint8_t> setup_header;
};

// At least the boot sector and the start of the setup header.
bool IsBzImage(std::span<const uint8_t> start);

Result<BzImage> ReadBzImage(const ImageSource& source);

}  // namespace forklet
