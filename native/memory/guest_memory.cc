#include "memory/guest_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "arch/x86_64/layout.h"
#include "memory/page_scan.h"

namespace forklet {

namespace {
// Pages in more runs than this are cheaper to drop with the whole mapping.
constexpr size_t kMaxRunsToDrop = 4096;

// All runs in as few calls as the kernel allows (Linux 6.14); false when it knows no
// such call, and some may have been dropped.
bool DropTogether(uint8_t* memory, const std::vector<PageRun>& runs) {
  constexpr int kPidfdSelf = -10000;  // PIDFD_SELF of <linux/pidfd.h>
  std::array<iovec, 64> pieces;
  for (size_t next = 0; next < runs.size();) {
    const size_t count = std::min(pieces.size(), runs.size() - next);
    size_t bytes = 0;
    for (size_t i = 0; i < count; ++i, ++next) {
      pieces[i] = {memory + runs[next].first * layout::kPageSize,
                   runs[next].count * layout::kPageSize};
      bytes += pieces[i].iov_len;
    }
    // By number: glibc has it from 2.36 on only.
    const long dropped =
        ::syscall(SYS_process_madvise, kPidfdSelf, pieces.data(), count, MADV_DONTNEED, 0);
    if (dropped < 0 || static_cast<size_t>(dropped) != bytes) return false;
  }
  return true;
}

Status DropPages(uint8_t* memory, const std::vector<PageRun>& runs) {
  if (DropTogether(memory, runs)) return Ok();
  for (const PageRun& run : runs) {
    if (::madvise(memory + run.first * layout::kPageSize, run.count * layout::kPageSize,
                  MADV_DONTNEED) != 0) {
      return Error{ErrorCode::kSystem, errno, "madvise(MADV_DONTNEED)", {}};
    }
  }
  return Ok();
}
}  // namespace

GuestMemory GuestMemory::Over(Mapping mapping) {
  GuestMemory memory;
  const uint64_t bytes = mapping.size();
  memory.bytes_ = bytes;
  memory.mapping_ = std::move(mapping);
  const uint64_t low = bytes < layout::kMmioHole.value ? bytes : layout::kMmioHole.value;
  memory.regions_.push_back({GuestAddress{0}, low, 0, memory.mapping_.data()});
  if (bytes > low) {
    memory.regions_.push_back(
        {layout::kHighRegion, bytes - low, low, memory.mapping_.data() + low});
  }
  return memory;
}

Result<GuestMemory> GuestMemory::Create(uint64_t bytes) {
  CHECK(bytes > 0 && bytes % layout::kPageSize == 0);
  ASSIGN_OR_RETURN(UniqueFd file, CreateRamFile(bytes));
  ASSIGN_OR_RETURN(Mapping mapping, Mapping::Create(file, bytes, PROT_READ | PROT_WRITE,
                                                    MAP_SHARED | MAP_NORESERVE, 0));
  TRY(KeepPrivate(mapping.data(), bytes));
  GuestMemory memory = Over(std::move(mapping));
  memory.memfd_ = std::make_shared<const UniqueFd>(std::move(file));
  return memory;
}

Result<GuestMemory> GuestMemory::Reserve(uint64_t bytes) {
  CHECK(bytes > 0 && bytes % layout::kPageSize == 0);
  ASSIGN_OR_RETURN(Mapping mapping,
                   Mapping::Create(UniqueFd(), bytes, PROT_NONE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, 0));
  return Over(std::move(mapping));
}

Status GuestMemory::Map(std::shared_ptr<const MemoryImage> image) {
  CHECK(image->bytes() == bytes_);
  guard_.reset();
  TRY(image->MapBase(mapping_.data()));
  // Before the first access.
  if (image->backing() == MemoryImage::Backing::kDisk) {
    ASSIGN_OR_RETURN(guard_, FaultGuard::Create(mapping_.data(), bytes_));
  }
  image->CopyPackedInto({mapping_.data(), bytes_}, 0);
  memfd_.reset();
  image_ = std::move(image);
  return Ok();
}

// Ordering requirements:
//  - the private mapping first, so that no write of this VM reaches the memfd
//    any more;
//  - then the seal, which the kernel grants only when no writable shared mapping
//    is left: its success is the proof.
Result<std::shared_ptr<const MemoryImage>> GuestMemory::Freeze() {
  CHECK(memfd_ != nullptr || image_ != nullptr);
  if (memfd_ != nullptr) {
    TRY(Map(MemoryImage::FromFile(memfd_, bytes_, MemoryImage::Backing::kMemory)));
    if (::fcntl(image_->base()->get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) != 0) {
      return Error{ErrorCode::kSystem, errno, "fcntl(F_ADD_SEALS)",
                   "something still maps this VM's memory for writing"};
    }
    return image_;
  }
  ASSIGN_OR_RETURN(std::vector<PageRun> runs, WrittenPages());
  if (runs.empty() && image_->runs().empty()) return image_;
  ASSIGN_OR_RETURN(auto image, MemoryImage::FromPages(*image_, mapping_.data(), std::move(runs)));
  // Read the pages first, then look: see FaultGuard.
  if (HasFailed()) {
    return Error{ErrorCode::kIo, 0, {}, "the file behind the VM's memory has failed"};
  }
  return image;
}

bool GuestMemory::HasFailed() const {
  return guard_ != nullptr && (guard_->failed() || image_->IsCutOff());
}

Result<std::vector<PageRun>> GuestMemory::WrittenPages() const {
  CHECK(image_ != nullptr);
  return ScanPrivatePages(mapping_.data(), bytes_);
}

void GuestMemory::Populate(const std::vector<PageRun>& pages) const {
  for (const PageRun& run : pages) {
    ::madvise(mapping_.data() + run.first * layout::kPageSize, run.count * layout::kPageSize,
              kMadvPopulateWrite);
  }
}

Status GuestMemory::RollBack(const std::vector<PageRun>& written) {
  CHECK(image_ != nullptr);
  if (written.size() > kMaxRunsToDrop) return Map(image_);
  TRY(DropPages(mapping_.data(), written));
  for (const PageRun& run : written) {
    image_->CopyPackedInto(
        {mapping_.data() + run.first * layout::kPageSize, run.count * layout::kPageSize},
        run.first * layout::kPageSize);
  }
  return Ok();
}

Result<uint64_t> GuestMemory::AllocatedBytes() const {
  if (memfd_ != nullptr) {
    struct stat file = {};
    if (::fstat(memfd_->get(), &file) != 0) {
      return Error{ErrorCode::kSystem, errno, "fstat", "guest memory"};
    }
    constexpr uint64_t kStatBlockBytes = 512;
    return static_cast<uint64_t>(file.st_blocks) * kStatBlockBytes;
  }
  if (image_ == nullptr) return uint64_t{0};
  ASSIGN_OR_RETURN(const std::vector<PageRun> runs, WrittenPages());
  return CountPages(runs) * layout::kPageSize;
}

uint8_t* GuestMemory::Range(GuestAddress address, uint64_t size) const {
  for (const MemoryRegion& region : regions_) {
    if (address < region.start) continue;
    const uint64_t offset = address - region.start;
    // Bounds: written so that neither side can overflow.
    if (offset <= region.size && size <= region.size - offset) return region.host + offset;
  }
  return nullptr;
}

bool GuestMemory::Read(GuestAddress address, std::span<uint8_t> out) const {
  const uint8_t* host = Range(address, out.size());
  if (host == nullptr) return false;
  std::memcpy(out.data(), host, out.size());
  return true;
}

bool GuestMemory::Write(GuestAddress address, std::span<const uint8_t> data) const {
  uint8_t* host = Range(address, data.size());
  if (host == nullptr) return false;
  std::memcpy(host, data.data(), data.size());
  return true;
}

}  // namespace forklet
