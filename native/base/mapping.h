#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

// Owns one mmap(2)ed range.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { Reset(); }

  // mmap(2) at an address of the kernel's choice. `protection`, `flags` and
  // `offset` as there.
  static Result<Mapping> Create(const UniqueFd& fd, size_t size, int protection, int flags,
                                uint64_t offset);

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  void Reset();

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace forklet
