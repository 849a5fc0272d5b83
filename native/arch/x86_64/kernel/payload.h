#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/mapping.h"
#include "base/result.h"

namespace forklet {

// A kernel unpacked on the host.
struct Unpacked {
  Mapping mapping;     // Larger than what is used of it
  uint64_t size;       // Bytes used
  const char* format;  // "XZ"
};

// The most that a payload may unpack to.
inline constexpr uint64_t kMaxUnpackedBytes = uint64_t{256} << 20;

// Unpacks a bzImage's payload, which may be followed by bytes that do not
// belong to it (the build appends the unpacked size to most formats). `name` is
// for messages.
Result<Unpacked> UnpackPayload(const std::string& name, std::span<const uint8_t> payload);

}  // namespace forklet
