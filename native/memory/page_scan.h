#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/result.h"

namespace forklet {

// Pages [first, first + count) of a mapping.
struct PageRun {
  uint64_t first;
  uint64_t count;
};

// The private pages of the mapping at `start`, a private mapping of a file: those
// that were written since it was mapped, swapped ones included. In order, as
// runs. Writes that go on meanwhile may be missed: stop the writers first.
//
// Asks the kernel's page table scan where it has one (Linux 6.7); the cost then
// follows the page tables that exist. Otherwise reads /proc/self/pagemap, at 8
// bytes a page.
Result<std::vector<PageRun>> ScanPrivatePages(const uint8_t* start, size_t bytes);

// The same by /proc/self/pagemap alone, on any kernel.
Result<std::vector<PageRun>> ReadPrivatePages(const uint8_t* start, size_t bytes);

inline uint64_t CountPages(const std::vector<PageRun>& runs) {
  uint64_t pages = 0;
  for (const PageRun& run : runs) pages += run.count;
  return pages;
}

}  // namespace forklet
