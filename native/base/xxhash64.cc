// The algorithm as xxHash's specification describes it (version 0.1.1).
#include "base/xxhash64.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace forklet {

namespace {

constexpr uint64_t kPrime1 = 0x9e3779b185ebca87;
constexpr uint64_t kPrime2 = 0xc2b2ae3d27d4eb4f;
constexpr uint64_t kPrime3 = 0x165667b19e3779f9;
constexpr uint64_t kPrime4 = 0x85ebca77c2b2ae63;
constexpr uint64_t kPrime5 = 0x27d4eb2f165667c5;

template <class T>
T Load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof value);
  return value;
}

uint64_t Round(uint64_t lane, uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

uint64_t Merge(uint64_t hash, uint64_t lane) { return (hash ^ Round(0, lane)) * kPrime1 + kPrime4; }

}  // namespace

void Xxhash64::Stripe(const uint8_t* data) {
  for (size_t i = 0; i < 4; ++i) lanes_[i] = Round(lanes_[i], Load<uint64_t>(data + 8 * i));
}

void Xxhash64::Update(std::span<const uint8_t> data) {
  const size_t used = total_ % kStripe;
  total_ += data.size();
  if (used > 0) {
    const size_t count = std::min(data.size(), kStripe - used);
    std::copy_n(data.begin(), count, pending_ + used);
    data = data.subspan(count);
    if (used + count < kStripe) return;
    Stripe(pending_);
  }
  while (data.size() >= kStripe) {
    Stripe(data.data());
    data = data.subspan(kStripe);
  }
  std::copy(data.begin(), data.end(), pending_);
}

uint64_t Xxhash64::Digest() const {
  uint64_t hash = kPrime5;
  if (total_ >= kStripe) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (uint64_t lane : lanes_) hash = Merge(hash, lane);
  }
  hash += total_;

  const uint8_t* rest = pending_;
  size_t size = total_ % kStripe;
  for (; size >= 8; size -= 8, rest += 8) {
    hash = std::rotl(hash ^ Round(0, Load<uint64_t>(rest)), 27) * kPrime1 + kPrime4;
  }
  for (; size >= 4; size -= 4, rest += 4) {
    hash = std::rotl(hash ^ (Load<uint32_t>(rest) * kPrime1), 23) * kPrime2 + kPrime3;
  }
  for (; size > 0; --size, ++rest) hash = std::rotl(hash ^ (*rest * kPrime5), 11) * kPrime1;

  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace forklet
