#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/mapping.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_address.h"

namespace forklet {

// A contiguous guest-physical range backed by one part of the memfd.
struct MemoryRegion {
  GuestAddress start;
  uint64_t size;         // In bytes, page-aligned
  uint64_t file_offset;  // Of the region's first byte in the memfd
  uint8_t* host;         // Lifetime: the GuestMemory's mapping
};

// The RAM of one VM: a memfd, mapped once, seen by the guest as one region or,
// around the MMIO hole, two.
//
// Every access checks its bounds without overflow and stays inside one region.
// The guest changes this memory while we read it: read a field once, into a
// copy, check the copy, use the copy.
//
// Thread: any. Ordinary accesses race with the guest by nature; ordering
// between fields of a shared structure is the business of Load and Store.
class GuestMemory {
 public:
  // `bytes` is a positive multiple of the page size.
  static Result<GuestMemory> Create(uint64_t bytes);

  uint64_t bytes() const { return bytes_; }
  const std::vector<MemoryRegion>& regions() const { return regions_; }
  // First address behind the RAM below the MMIO hole.
  GuestAddress low_end() const { return regions_.front().start + regions_.front().size; }
  const UniqueFd& memfd() const { return memfd_; }

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

  template <class T>
  T* Aligned(GuestAddress address) const {
    if (address.value % alignof(T) != 0) return nullptr;
    // Bounds: Range has checked sizeof(T) bytes.
    return reinterpret_cast<T*>(Range(address, sizeof(T)));
  }

  uint64_t bytes_ = 0;
  UniqueFd memfd_;
  Mapping mapping_;
  std::vector<MemoryRegion> regions_;
};

}  // namespace forklet
