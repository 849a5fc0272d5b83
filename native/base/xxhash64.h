#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace forklet {

// XXH64 with seed 0, of bytes that come in pieces: finds damage, at the speed of
// memory. It is no defence against somebody who means it; see
// docs/snapshot-format.md for what is.
class Xxhash64 {
 public:
  void Update(std::span<const uint8_t> data);
  uint64_t Digest() const;

  static uint64_t Of(std::span<const uint8_t> data) {
    Xxhash64 hash;
    hash.Update(data);
    return hash.Digest();
  }

 private:
  static constexpr size_t kStripe = 32;
  static constexpr uint64_t kPrime1 = 0x9e3779b185ebca87;
  static constexpr uint64_t kPrime2 = 0xc2b2ae3d27d4eb4f;

  void Stripe(const uint8_t* data);

  uint64_t lanes_[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
  uint64_t total_ = 0;  // Bytes so far
  // Bounds: the first total_ % kStripe bytes are in use.
  uint8_t pending_[kStripe] = {};
};

}  // namespace forklet
