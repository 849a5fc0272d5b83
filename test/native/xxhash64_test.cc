#include "base/xxhash64.h"

#include <string>
#include <vector>

#include "doctest.h"

namespace forklet {
namespace {

uint64_t Hash(const std::string& text) {
  return Xxhash64::Of({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

TEST_CASE("Xxhash64 gives the values that xxhsum gives") {
  CHECK_EQ(Hash(""), 0xef46db3751d8e999);
  CHECK_EQ(Hash("a"), 0xd24ec4f1a98c6e5b);
  CHECK_EQ(Hash("abc"), 0x44bc2cf5ad770999);
  CHECK_EQ(Hash("The quick brown fox jumps over the lazy dog"), 0x0b242d361fda71bc);
}

TEST_CASE("Xxhash64 does not care how the bytes are cut") {
  std::vector<uint8_t> bytes(200);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
  const uint64_t whole = Xxhash64::Of(bytes);
  for (size_t first = 0; first <= bytes.size(); ++first) {
    for (size_t second : {size_t{1}, size_t{31}, size_t{32}, size_t{33}}) {
      Xxhash64 hash;
      const std::span<const uint8_t> rest = std::span(bytes).subspan(first);
      hash.Update(std::span(bytes).first(first));
      hash.Update(rest.first(std::min(second, rest.size())));
      hash.Update(rest.subspan(std::min(second, rest.size())));
      REQUIRE_EQ(hash.Digest(), whole);
    }
  }
}

}  // namespace
}  // namespace forklet
