#include "memory/guest_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "arch/x86_64/layout.h"

namespace forklet {

Result<GuestMemory> GuestMemory::Create(uint64_t bytes) {
  CHECK(bytes > 0 && bytes % layout::kPageSize == 0);
  GuestMemory memory;
  memory.bytes_ = bytes;
  memory.memfd_ = UniqueFd(::memfd_create("forklet-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.memfd_) return Error{ErrorCode::kSystem, errno, "memfd_create", {}};
  if (::ftruncate(memory.memfd_.get(), static_cast<off_t>(bytes)) != 0) {
    return Error{ErrorCode::kNoMemory, errno, "ftruncate",
                 "guest memory of " + std::to_string(bytes) + " bytes"};
  }
  // A size that cannot change is what makes every later access safe from SIGBUS.
  if (::fcntl(memory.memfd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return Error{ErrorCode::kSystem, errno, "fcntl(F_ADD_SEALS)", {}};
  }
  ASSIGN_OR_RETURN(memory.mapping_, Mapping::Create(memory.memfd_, bytes, PROT_READ | PROT_WRITE,
                                                    MAP_SHARED | MAP_NORESERVE, 0));
  // Guest memory belongs to this process alone: not to what it forks, nor into
  // a core dump, which would hold the guest's secrets.
  if (::madvise(memory.mapping_.data(), bytes, MADV_DONTFORK) != 0 ||
      ::madvise(memory.mapping_.data(), bytes, MADV_DONTDUMP) != 0) {
    return Error{ErrorCode::kSystem, errno, "madvise", {}};
  }

  const uint64_t low = bytes < layout::kMmioHole.value ? bytes : layout::kMmioHole.value;
  memory.regions_.push_back({GuestAddress{0}, low, 0, memory.mapping_.data()});
  if (bytes > low) {
    memory.regions_.push_back(
        {layout::kHighRegion, bytes - low, low, memory.mapping_.data() + low});
  }
  return memory;
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
