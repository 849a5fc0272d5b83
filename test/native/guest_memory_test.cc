#include <sys/mman.h>

#include <array>
#include <cstring>
#include <limits>

#include "arch/x86_64/layout.h"
#include "doctest.h"
#include "memory/guest_memory.h"

namespace forklet {

namespace {
constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kGiB = 1u << 30;

GuestMemory Create(uint64_t bytes) {
  auto memory = GuestMemory::Create(bytes);
  REQUIRE(memory.ok());
  return std::move(memory).value();
}
}  // namespace

TEST_CASE("GuestMemory is one region when it ends below the MMIO hole") {
  const GuestMemory memory = Create(32 * kMiB);

  REQUIRE(memory.regions().size() == 1);
  CHECK(memory.regions()[0].start == GuestAddress{0});
  CHECK(memory.regions()[0].size == 32 * kMiB);
  CHECK(memory.low_end() == GuestAddress{32 * kMiB});
}

TEST_CASE("GuestMemory continues at 4 GiB when it is larger than the space below the hole") {
  const GuestMemory memory = Create(5 * kGiB);

  REQUIRE(memory.regions().size() == 2);
  CHECK(memory.low_end() == layout::kMmioHole);
  CHECK(memory.regions()[1].start == layout::kHighRegion);
  CHECK(memory.regions()[0].size + memory.regions()[1].size == 5 * kGiB);
  CHECK(memory.Range(layout::kMmioHole, 1) == nullptr);
  CHECK(memory.Range(layout::kHighRegion, 2 * kGiB) != nullptr);
  CHECK(memory.Range(layout::kHighRegion, 2 * kGiB + 1) == nullptr);
}

TEST_CASE("GuestMemory refuses ranges that leave a region, without overflow") {
  const GuestMemory memory = Create(32 * kMiB);
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

  CHECK(memory.Range(GuestAddress{0}, 32 * kMiB) != nullptr);
  CHECK(memory.Range(GuestAddress{0}, 32 * kMiB + 1) == nullptr);
  CHECK(memory.Range(GuestAddress{32 * kMiB - 1}, 2) == nullptr);
  CHECK(memory.Range(GuestAddress{1}, kMax) == nullptr);
  CHECK(memory.Range(GuestAddress{kMax}, 1) == nullptr);
  CHECK(memory.Range(GuestAddress{kMax}, kMax) == nullptr);
}

TEST_CASE("GuestMemory copies nothing when the range is not RAM") {
  const GuestMemory memory = Create(32 * kMiB);
  std::array<uint8_t, 4> bytes = {1, 2, 3, 4};

  CHECK_FALSE(memory.Write(GuestAddress{32 * kMiB - 2}, bytes));
  std::array<uint8_t, 2> tail = {9, 9};
  REQUIRE(memory.Read(GuestAddress{32 * kMiB - 2}, tail));
  CHECK(tail == std::array<uint8_t, 2>{0, 0});

  CHECK_FALSE(memory.Read(GuestAddress{32 * kMiB - 2}, bytes));
  CHECK(bytes == std::array<uint8_t, 4>{1, 2, 3, 4});
}

TEST_CASE("GuestMemory refuses unaligned atomics") {
  const GuestMemory memory = Create(32 * kMiB);
  uint32_t value = 7;

  CHECK_FALSE(memory.Load(GuestAddress{2}, value, __ATOMIC_ACQUIRE));
  CHECK(value == 7);
  REQUIRE(memory.Store(GuestAddress{4}, uint32_t{42}, __ATOMIC_RELEASE));
  REQUIRE(memory.Load(GuestAddress{4}, value, __ATOMIC_ACQUIRE));
  CHECK(value == 42);
}

TEST_CASE("GuestMemory says so when the host refuses") {
  auto memory = GuestMemory::Create(uint64_t{1} << 62);

  REQUIRE_FALSE(memory.ok());
  CHECK(memory.error().code == ErrorCode::kNoMemory);
}

}  // namespace forklet
