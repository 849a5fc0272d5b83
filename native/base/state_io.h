// Plain state as bytes: fixed-size little-endian integers, byte strings and
// counted lists, one after the other. Whoever reads knows the order, so there
// are no tags; what the bytes belong to and whether they are whole is the
// container's business (see docs/snapshot-format.md).
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace forklet {

static_assert(std::endian::native == std::endian::little, "values are copied as they are");

class StateWriter {
 public:
  template <std::integral T>
  void Write(T value) {
    if constexpr (std::is_same_v<T, bool>) {
      Append(static_cast<uint8_t>(value ? 1 : 0));
    } else {
      Append(value);
    }
  }
  // The length in 64 bits, then the bytes.
  void WriteBytes(std::span<const uint8_t> bytes) {
    WriteCount(bytes.size());
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  // Starts a list; its elements follow.
  void WriteCount(size_t count) { Append(uint64_t{count}); }

  const std::vector<uint8_t>& bytes() const { return bytes_; }
  std::vector<uint8_t> Take() && { return std::move(bytes_); }

 private:
  template <class T>
  void Append(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof value);
    std::memcpy(bytes_.data() + at, &value, sizeof value);
  }

  std::vector<uint8_t> bytes_;
};

// Takes apart what may come from a file, and so from anybody. Every method is
// false when the bytes do not hold what is asked for, and so is every later one:
// a caller may check once for several. Outputs are then unchanged.
class StateReader {
 public:
  // Lifetime: the bytes outlive the reader.
  explicit StateReader(std::span<const uint8_t> bytes) : rest_(bytes) {}

  template <std::integral T>
  [[nodiscard]] bool Read(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      if (!Copy(&byte, sizeof byte)) return false;
      if (byte > 1) return Fail();
      value = byte == 1;
      return true;
    } else {
      return Copy(&value, sizeof value);
    }
  }
  // A byte string of at most `max_bytes`. Nothing is allocated for a length that
  // the input does not have.
  [[nodiscard]] bool ReadBytes(std::vector<uint8_t>& bytes, size_t max_bytes);
  // A list's length: at most `max_count`, and no more than the rest can hold
  // when each element takes `min_element_bytes` (positive) or more.
  [[nodiscard]] bool ReadCount(size_t& count, size_t min_element_bytes, size_t max_count);

  size_t remaining() const { return rest_.size(); }
  // Whether everything was well, and everything was read.
  [[nodiscard]] bool Finish() const { return !failed_ && rest_.empty(); }

 private:
  bool Copy(void* to, size_t size) {
    if (failed_ || size > rest_.size()) return Fail();
    std::memcpy(to, rest_.data(), size);
    rest_ = rest_.subspan(size);
    return true;
  }
  bool Fail() {
    failed_ = true;
    return false;
  }

  std::span<const uint8_t> rest_;
  bool failed_ = false;
};

}  // namespace forklet
