#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/fault_guard.h"
#include "base/mapping.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_address.h"
#include "memory/memory_image.h"

namespace forklet {

// A contiguous guest-physical range backed by one part of the file.
struct MemoryRegion {
  GuestAddress start;
  uint64_t size;         // In bytes, page-aligned
  uint64_t file_offset;  // Of the region's first byte in the file
  uint8_t* host;         // Lifetime: the GuestMemory's mapping
};

// The RAM of one VM, seen by the guest as one region or, around the MMIO hole,
// two. It lies at one host address for life, and there is one of
//   - a memfd of its own, mapped shared: a VM that was booted;
//   - an image, mapped privately: a fork, and any VM from its first freeze on;
//   - nothing yet: a VM that was made ahead of need.
//
// Every access checks its bounds without overflow and stays inside one region.
// The guest changes this memory while we read it: read a field once, into a
// copy, check the copy, use the copy.
//
// Thread: any. Ordinary accesses race with the guest by nature; ordering
// between fields of a shared structure is the business of Load and Store.
class GuestMemory {
 public:
  // RAM of zeros. `bytes` is a positive multiple of the page size.
  static Result<GuestMemory> Create(uint64_t bytes);
  // Address space only: Map() comes before any access.
  static Result<GuestMemory> Reserve(uint64_t bytes);

  // Puts a private mapping of an image of the same size in place of whatever is
  // there. Nobody uses the memory meanwhile.
  Status Map(std::shared_ptr<const MemoryImage> image);
  // The present contents as an image. This memory goes on as a private mapping,
  // with the same contents. Nobody writes meanwhile.
  Result<std::shared_ptr<const MemoryImage>> Freeze();
  // The pages that were written since Map().
  Result<std::vector<PageRun>> WrittenPages() const;
  // Makes these pages private ahead of the writes to come, which then cost no fault.
  // Best effort: without it they do.
  void Populate(const std::vector<PageRun>& pages) const;
  // Undoes those writes, at a cost that follows their number. Nobody uses the memory
  // meanwhile.
  Status RollBack(const std::vector<PageRun>& written);

  // Tells when the file that this memory is mapped from fails, which leaves zeros
  // in its place; null when it cannot.
  const FaultGuard* guard() const { return guard_.get(); }
  // Whether it has failed, or its file is cut off, as KVM may have found before the
  // guard did.
  bool HasFailed() const;
  // What a VM whose memory has failed is said to have ended from.
  static constexpr char kFailed[] =
      "the file behind the VM's memory was truncated or cannot be read";
  // The image that this memory is mapped from; null for one that is shared.
  const std::shared_ptr<const MemoryImage>& image() const { return image_; }
  // Host memory that this VM alone holds: what was allocated in its memfd, or the
  // pages that it has written.
  Result<uint64_t> AllocatedBytes() const;

  uint64_t bytes() const { return bytes_; }
  const std::vector<MemoryRegion>& regions() const { return regions_; }
  // First address behind the RAM below the MMIO hole.
  GuestAddress low_end() const { return regions_.front().start + regions_.front().size; }

  // The host range of [address, address + size), or nullptr when any byte of it
  // is no RAM or it crosses regions. An empty range is valid where its address
  // is. The pointer lives as long as this object; what it points to belongs to
  // the guest.
  uint8_t* Range(GuestAddress address, uint64_t size) const;

  // Copies; false (and nothing copied) when the range is not RAM.
  [[nodiscard]] bool Read(GuestAddress address, std::span<uint8_t> out) const;
  [[nodiscard]] bool Write(GuestAddress address, std::span<const uint8_t> data) const;

  template <class T>
  [[nodiscard]] bool ReadObject(GuestAddress address, T& out) const {
    return Read(address, {reinterpret_cast<uint8_t*>(&out), sizeof out});
  }
  template <class T>
  [[nodiscard]] bool WriteObject(GuestAddress address, const T& value) const {
    return Write(address, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
  }

  // Atomic access to a naturally aligned integer shared with a vCPU. `order` is
  // a GCC memory order, such as __ATOMIC_ACQUIRE. False when it is not RAM or
  // not aligned.
  template <class T>
  [[nodiscard]] bool Load(GuestAddress address, T& out, int order) const {
    const T* host = Aligned<T>(address);
    if (host == nullptr) return false;
    out = __atomic_load_n(host, order);
    return true;
  }
  template <class T>
  [[nodiscard]] bool Store(GuestAddress address, T value, int order) const {
    T* host = Aligned<T>(address);
    if (host == nullptr) return false;
    __atomic_store_n(host, value, order);
    return true;
  }

 private:
  GuestMemory() = default;

  static GuestMemory Over(Mapping mapping);

  template <class T>
  T* Aligned(GuestAddress address) const {
    if (address.value % alignof(T) != 0) return nullptr;
    // Bounds: Range has checked sizeof(T) bytes.
    return reinterpret_cast<T*>(Range(address, sizeof(T)));
  }

  uint64_t bytes_ = 0;
  std::shared_ptr<const UniqueFd> memfd_;     // While mapped shared
  std::shared_ptr<const MemoryImage> image_;  // While mapped privately
  Mapping mapping_;
  std::unique_ptr<FaultGuard> guard_;  // While image_ may fail
  std::vector<MemoryRegion> regions_;
};

}  // namespace forklet
