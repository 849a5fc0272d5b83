#pragma once

#include <compare>
#include <cstdint>

namespace forklet {

// A guest-physical address (GPA). A type of its own, so that it can't be taken
// for a host or guest-virtual one. Arithmetic wraps like the hardware's; bounds
// are GuestMemory's business.
struct GuestAddress {
  uint64_t value = 0;

  constexpr GuestAddress operator+(uint64_t offset) const { return {value + offset}; }
  constexpr uint64_t operator-(GuestAddress other) const { return value - other.value; }
  constexpr auto operator<=>(const GuestAddress&) const = default;
};

}  // namespace forklet
