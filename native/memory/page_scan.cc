#include "memory/page_scan.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "arch/x86_64/layout.h"
#include "base/unique_fd.h"

namespace forklet {

namespace {

// PAGEMAP_SCAN of <linux/fs.h>, which Debian 12's headers do not have yet; see
// Documentation/admin-guide/mm/pagemap.rst.
struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};
struct ScanArgument {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
static_assert(sizeof(ScanArgument) == 96);
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArgument);
constexpr uint64_t kIsFile = 1u << 2;
constexpr uint64_t kIsPresent = 1u << 3;
constexpr uint64_t kIsSwapped = 1u << 4;

// One entry of /proc/self/pagemap.
constexpr uint64_t kEntryPresent = uint64_t{1} << 63;
constexpr uint64_t kEntrySwapped = uint64_t{1} << 62;
constexpr uint64_t kEntryFileOrShared = uint64_t{1} << 61;

Result<UniqueFd> OpenPagemap() {
  UniqueFd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!fd) return Error{ErrorCode::kSystem, errno, "open", "/proc/self/pagemap"};
  return fd;
}

void Append(std::vector<PageRun>& runs, uint64_t first, uint64_t count) {
  if (!runs.empty() && runs.back().first + runs.back().count == first) {
    runs.back().count += count;
  } else {
    runs.push_back({first, count});
  }
}

// False when the kernel has no such request.
Result<bool> ScanInto(const UniqueFd& pagemap, const uint8_t* start, size_t bytes,
                      std::vector<PageRun>& runs) {
  constexpr size_t kRegions = 512;
  PageRegion regions[kRegions];
  const auto base = reinterpret_cast<uint64_t>(start);
  ScanArgument argument = {};
  argument.size = sizeof argument;
  argument.end = base + bytes;
  argument.vec = reinterpret_cast<uint64_t>(regions);
  argument.vec_len = kRegions;
  argument.category_inverted = kIsFile;
  argument.category_mask = kIsFile;
  argument.category_anyof_mask = kIsPresent | kIsSwapped;
  for (uint64_t next = base; next < argument.end; next = argument.walk_end) {
    argument.start = next;
    const int count = ::ioctl(pagemap.get(), kPagemapScan, &argument);
    if (count < 0) {
      if (errno == ENOTTY || errno == EINVAL) return false;
      return Error{ErrorCode::kSystem, errno, "PAGEMAP_SCAN", {}};
    }
    for (int i = 0; i < count; ++i) {
      Append(runs, (regions[i].start - base) / layout::kPageSize,
             (regions[i].end - regions[i].start) / layout::kPageSize);
    }
    // Bounds: the kernel always moves on, but an endless loop is not ours to risk.
    if (argument.walk_end <= next) break;
  }
  return true;
}

}  // namespace

Result<std::vector<PageRun>> ReadPrivatePages(const uint8_t* start, size_t bytes) {
  ASSIGN_OR_RETURN(const UniqueFd pagemap, OpenPagemap());
  constexpr size_t kEntries = 4096;
  std::vector<uint64_t> entries(kEntries);
  std::vector<PageRun> runs;
  const uint64_t pages = bytes / layout::kPageSize;
  const uint64_t first = reinterpret_cast<uint64_t>(start) / layout::kPageSize;
  for (uint64_t page = 0; page < pages;) {
    const size_t want = std::min<uint64_t>(kEntries, pages - page) * sizeof(uint64_t);
    const ssize_t got = ::pread(pagemap.get(), entries.data(), want,
                                static_cast<off_t>((first + page) * sizeof(uint64_t)));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0 || got % static_cast<ssize_t>(sizeof(uint64_t)) != 0) {
      return Error{ErrorCode::kSystem, got < 0 ? errno : EIO, "pread", "/proc/self/pagemap"};
    }
    const uint64_t count = static_cast<uint64_t>(got) / sizeof(uint64_t);
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t entry = entries[i];
      if ((entry & (kEntryPresent | kEntrySwapped)) != 0 && (entry & kEntryFileOrShared) == 0) {
        Append(runs, page + i, 1);
      }
    }
    page += count;
  }
  return runs;
}

Result<std::vector<PageRun>> ScanPrivatePages(const uint8_t* start, size_t bytes) {
  // Thread: any; a kernel does not learn the request while we run.
  static std::atomic<bool> unavailable = false;
  if (!unavailable.load(std::memory_order_relaxed)) {
    ASSIGN_OR_RETURN(const UniqueFd pagemap, OpenPagemap());
    std::vector<PageRun> runs;
    ASSIGN_OR_RETURN(const bool known, ScanInto(pagemap, start, bytes, runs));
    if (known) return runs;
    unavailable.store(true, std::memory_order_relaxed);
  }
  return ReadPrivatePages(start, bytes);
}

}  // namespace forklet
