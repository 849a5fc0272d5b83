#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_address.h"
#include "memory/guest_memory.h"

namespace forklet {

// Offset of the setup header, both in a bzImage and in the zero page.
inline constexpr uint64_t kSetupHeaderOffset = 0x1f1;

struct LoadedKernel {
  GuestAddress entry;  // 64-bit entry point, inside a loaded segment
  GuestAddress end;    // First page-aligned address behind every segment, bss included
  // The bzImage's setup header, to be put into the zero page at
  // kSetupHeaderOffset; empty when the file was an ELF vmlinux.
  std::vector<uint8_t> setup_header;
};

// An x86-64 Linux kernel in a file: an ELF vmlinux, or a bzImage whose payload
// is one. The ELF is loaded where its physical addresses say, and entered at
// its 64-bit entry point, so that no decompressor runs inside the guest.
//
// The file is the caller's and as little trusted as a guest: every field is
// checked before it is used. Failures are ErrorCode::kBadKernel and name the
// file. Owner: whoever boots a VM. Thread: one at a time.
class KernelImage {
 public:
  // Opens the file and says at once when it cannot be a kernel of ours. Never
  // blocks on a FIFO or a device.
  static Result<KernelImage> Open(const std::string& path);

  // Unpacks a bzImage, checks every segment against `memory` and then reads
  // them into it. `memory` is fresh: what a segment has beyond its file bytes
  // (bss) is expected to read as zero already. On failure `memory` is either
  // untouched or, when reading the file failed half-way, of no use any more.
  Result<LoadedKernel> Load(const GuestMemory& memory) const;

  bool is_bzimage() const { return is_bzimage_; }

 private:
  KernelImage(std::string path, UniqueFd fd, uint64_t size, bool is_bzimage)
      : path_(std::move(path)), fd_(std::move(fd)), size_(size), is_bzimage_(is_bzimage) {}

  std::string path_;
  UniqueFd fd_;
  uint64_t size_;  // When it was opened, in bytes
  bool is_bzimage_;
};

}  // namespace forklet
