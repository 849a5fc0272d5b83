// What the tables of a firmware are made with: bytes behind one another, and a
// checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace forklet {

// The byte that makes the sum of all bytes zero, where it now is zero itself.
inline uint8_t Checksum(const void* data, size_t size) {
  uint8_t sum = 0;
  for (size_t i = 0; i < size; ++i) sum += static_cast<const uint8_t*>(data)[i];
  return static_cast<uint8_t>(-sum);
}

// Appends a packed structure or an integer as it lies in memory.
template <class T>
void Append(std::vector<uint8_t>& bytes, const T& value) {
  const size_t at = bytes.size();
  bytes.resize(at + sizeof value);
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

}  // namespace forklet
