#include "arch/x86_64/kernel/bzimage.h"

#include <cstring>
#include <string>

#include "arch/x86_64/kernel/kernel_image.h"

namespace forklet {
namespace {

// Offsets in the file, all fields little-endian.
constexpr uint64_t kSetupSects = 0x1f1;     // u8, sectors of setup code; 0 means 4
constexpr uint64_t kBootFlag = 0x1fe;       // u16, 0xaa55
constexpr uint64_t kJumpOffset = 0x201;     // u8, displacement of a jump at 0x200 over the header
constexpr uint64_t kHeaderMagic = 0x202;    // "HdrS"
constexpr uint64_t kVersion = 0x206;        // u16
constexpr uint64_t kLoadFlags = 0x211;      // u8, bit 0: loaded high
constexpr uint64_t kXLoadFlags = 0x236;     // u16, from 2.12 on, bit 0: 64-bit
constexpr uint64_t kPayloadOffset = 0x248;  // u32, from the protected-mode code, from 2.08 on
constexpr uint64_t kPayloadLength = 0x24c;  // u32, from 2.08 on
constexpr uint64_t kHeaderEnd208 = 0x250;   // End of the header as of 2.08
// Where the zero page goes on after its copy of the header.
constexpr uint64_t kHeaderMaxEnd = 0x290;

constexpr uint64_t kSectorBytes = 512;
constexpr uint16_t kMinVersion = 0x208;
constexpr uint16_t kVersionWithXLoadFlags = 0x20c;

template <class T>
T Field(const uint8_t* file, uint64_t offset) {
  T value;
  std::memcpy(&value, file + offset, sizeof value);
  return value;
}

std::string VersionName(uint16_t version) {
  const std::string minor = std::to_string(version & 0xff);
  return std::to_string(version >> 8) + "." + (minor.size() < 2 ? "0" + minor : minor);
}

}  // namespace

bool IsBzImage(std::span<const uint8_t> start) {
  return start.size() >= kVersion && Field<uint16_t>(start.data(), kBootFlag) == 0xaa55 &&
         std::memcmp(start.data() + kHeaderMagic, "HdrS", 4) == 0;
}

Result<BzImage> ReadBzImage(const ImageSource& source) {
  uint8_t start[kHeaderMaxEnd];
  TRY(source.ReadObject(0, start));
  if (!IsBzImage(start)) return BadKernel(source.name(), "not a bzImage");

  const auto version = Field<uint16_t>(start, kVersion);
  if (version < kMinVersion) {
    return BadKernel(source.name(), "a bzImage of boot protocol " + VersionName(version) +
                                        "; 2.08 or later is needed");
  }
  if ((Field<uint8_t>(start, kLoadFlags) & 1) == 0) {
    return BadKernel(source.name(), "a zImage; a bzImage is needed");
  }
  if (version >= kVersionWithXLoadFlags && (Field<uint16_t>(start, kXLoadFlags) & 1) == 0) {
    return BadKernel(source.name(), "the bzImage of a 32-bit kernel; an x86-64 one is needed");
  }

  BzImage image;
  const uint8_t sectors = Field<uint8_t>(start, kSetupSects);
  const uint64_t code = (uint64_t{sectors == 0 ? uint8_t{4} : sectors} + 1) * kSectorBytes;
  image.payload_offset = code + Field<uint32_t>(start, kPayloadOffset);
  image.payload_size = Field<uint32_t>(start, kPayloadLength);
  if (image.payload_size == 0) return BadKernel(source.name(), "a bzImage without a payload");
  // Bounds: the offset is the sum of two numbers far below 2^63.
  if (image.payload_offset > source.size() ||
      image.payload_size > source.size() - image.payload_offset) {
    return BadKernel(source.name(), "truncated: its payload of " + Hex(image.payload_size) +
                                        " bytes at offset " + Hex(image.payload_offset) +
                                        " is needed, but it ends at " + Hex(source.size()));
  }

  const uint64_t end = kHeaderMagic + Field<uint8_t>(start, kJumpOffset);
  if (end < kHeaderEnd208 || end > kHeaderMaxEnd) {
    return BadKernel(source.name(), "a setup header that ends at " + Hex(end) +
                                        ", which is not between " + Hex(kHeaderEnd208) + " and " +
                                        Hex(kHeaderMaxEnd));
  }
  image.setup_header.assign(start + kSetupHeaderOffset, start + end);
  return image;
}

}  // namespace forklet
