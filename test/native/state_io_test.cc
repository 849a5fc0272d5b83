#include "base/state_io.h"

#include <limits>

#include "doctest.h"

namespace forklet {
namespace {

TEST_CASE("StateReader gives back what StateWriter took") {
  StateWriter out;
  out.Write(uint8_t{0xab});
  out.Write(uint16_t{0xabcd});
  out.Write(uint32_t{0xdeadbeef});
  out.Write(uint64_t{0x0123456789abcdef});
  out.Write(int64_t{-5});
  out.Write(true);
  out.WriteBytes(std::vector<uint8_t>{1, 2, 3});
  out.WriteCount(2);
  out.Write(uint16_t{7});
  out.Write(uint16_t{8});
  const std::vector<uint8_t> bytes = std::move(out).Take();

  StateReader in(bytes);
  uint8_t u8 = 0;
  uint16_t u16 = 0;
  uint32_t u32 = 0;
  uint64_t u64 = 0;
  int64_t i64 = 0;
  bool flag = false;
  std::vector<uint8_t> text;
  size_t count = 0;
  REQUIRE(in.Read(u8));
  REQUIRE(in.Read(u16));
  REQUIRE(in.Read(u32));
  REQUIRE(in.Read(u64));
  REQUIRE(in.Read(i64));
  REQUIRE(in.Read(flag));
  REQUIRE(in.ReadBytes(text, 3));
  REQUIRE(in.ReadCount(count, 2, 2));
  CHECK_EQ(u8, 0xab);
  CHECK_EQ(u16, 0xabcd);
  CHECK_EQ(u32, 0xdeadbeef);
  CHECK_EQ(u64, 0x0123456789abcdef);
  CHECK_EQ(i64, -5);
  CHECK(flag);
  CHECK_EQ(text, std::vector<uint8_t>{1, 2, 3});
  CHECK_EQ(count, 2);
  REQUIRE(in.Read(u16));
  REQUIRE(in.Read(u16));
  CHECK_EQ(u16, 8);
  CHECK(in.Finish());
}

TEST_CASE("StateWriter writes little-endian bytes without padding") {
  StateWriter out;
  out.Write(uint8_t{1});
  out.Write(uint32_t{0x05040302});
  out.WriteBytes(std::vector<uint8_t>{6});
  CHECK_EQ(out.bytes(), std::vector<uint8_t>{1, 2, 3, 4, 5, 1, 0, 0, 0, 0, 0, 0, 0, 6});
}

TEST_CASE("StateReader fails on short input, and stays failed") {
  const std::vector<uint8_t> bytes = {1, 2, 3};
  StateReader in(bytes);
  uint32_t wide = 99;
  CHECK_FALSE(in.Read(wide));
  CHECK_EQ(wide, 99);
  uint8_t narrow = 99;
  CHECK_FALSE(in.Read(narrow));
  CHECK_EQ(narrow, 99);
  CHECK_FALSE(in.Finish());
}

TEST_CASE("StateReader fails on bytes left over") {
  const std::vector<uint8_t> bytes = {1, 2};
  StateReader in(bytes);
  uint8_t value = 0;
  REQUIRE(in.Read(value));
  CHECK_FALSE(in.Finish());
  CHECK_EQ(in.remaining(), 1);
}

TEST_CASE("StateReader takes only 0 and 1 for a flag") {
  const std::vector<uint8_t> bytes = {2};
  StateReader in(bytes);
  bool flag = false;
  CHECK_FALSE(in.Read(flag));
}

TEST_CASE("StateReader refuses lengths beyond the rest or the bound, and allocates nothing") {
  const auto bytes_with_length = [](uint64_t length) {
    StateWriter out;
    out.Write(length);
    out.Write(uint32_t{0});
    return std::move(out).Take();
  };
  for (uint64_t length : {uint64_t{5}, uint64_t{1} << 40, std::numeric_limits<uint64_t>::max()}) {
    const std::vector<uint8_t> bytes = bytes_with_length(length);
    StateReader in(bytes);
    std::vector<uint8_t> text;
    CHECK_FALSE(in.ReadBytes(text, std::numeric_limits<size_t>::max()));
    CHECK_EQ(text.capacity(), 0);
  }
  const std::vector<uint8_t> bytes = bytes_with_length(4);
  std::vector<uint8_t> text;
  StateReader bounded(bytes);
  CHECK_FALSE(bounded.ReadBytes(text, 3));
  // Four elements of two bytes do not fit into four bytes.
  size_t count = 0;
  StateReader list(bytes);
  CHECK_FALSE(list.ReadCount(count, 2, 100));
  StateReader fits(bytes);
  CHECK(fits.ReadBytes(text, 4));
  CHECK(fits.Finish());
}

}  // namespace
}  // namespace forklet
