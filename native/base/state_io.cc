#include "base/state_io.h"

#include "base/check.h"

namespace forklet {

bool StateReader::ReadBytes(std::vector<uint8_t>& bytes, size_t max_bytes) {
  size_t count = 0;
  if (!ReadCount(count, 1, max_bytes)) return false;
  // Bounds: ReadCount has compared the count with the rest.
  bytes.assign(rest_.begin(), rest_.begin() + static_cast<ptrdiff_t>(count));
  rest_ = rest_.subspan(count);
  return true;
}

bool StateReader::ReadCount(size_t& count, size_t min_element_bytes, size_t max_count) {
  CHECK(min_element_bytes > 0);
  uint64_t value = 0;
  if (!Copy(&value, sizeof value)) return false;
  if (value > max_count || value > rest_.size() / min_element_bytes) return Fail();
  count = value;
  return true;
}

}  // namespace forklet
