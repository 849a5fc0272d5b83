#include "arch/x86_64/kernel/kernel_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "arch/x86_64/kernel/bzimage.h"
#include "arch/x86_64/kernel/elf.h"
#include "arch/x86_64/kernel/image_source.h"
#include "arch/x86_64/kernel/payload.h"
#include "base/mapping.h"

namespace forklet {
namespace {

const char* FileKind(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return "a directory";
    case S_IFIFO:
      return "a FIFO";
    case S_IFCHR:
      return "a character device";
    case S_IFBLK:
      return "a block device";
    case S_IFSOCK:
      return "a socket";
    default:
      return "not a file";
  }
}

// The boot sector and as much of the setup header as tells a bzImage.
constexpr uint64_t kProbeBytes = 0x210;

}  // namespace

Result<KernelImage> KernelImage::Open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO would wait for a writer. It changes nothing for
  // regular files.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return Error{ErrorCode::kBadKernel, errno, "open", path};
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return Error{ErrorCode::kBadKernel, errno, "fstat", path};
  if (!S_ISREG(status.st_mode)) {
    return BadKernel(path,
                     std::string("is ") + FileKind(status.st_mode) + "; a regular file is needed");
  }
  if (status.st_size <= 0) return BadKernel(path, "is empty");

  const auto size = static_cast<uint64_t>(status.st_size);
  const FileSource source(path, fd, size);
  uint8_t start[kProbeBytes] = {};
  const std::span<uint8_t> probe(start, std::min(size, kProbeBytes));
  TRY(source.Read(0, probe));
  const bool is_bzimage = IsBzImage(probe);
  if (is_bzimage) {
    TRY(ReadBzImage(source));
  } else if (IsElf(probe)) {
    TRY(CheckElfHeader(source));
  } else {
    return BadKernel(path, "neither an ELF vmlinux nor a bzImage");
  }
  return KernelImage(path, std::move(fd), size, is_bzimage);
}

Result<LoadedKernel> KernelImage::Load(const GuestMemory& memory) const {
  const FileSource file(path_, fd_, size_);
  if (!is_bzimage_) {
    ASSIGN_OR_RETURN(const LoadedElf elf, LoadElf(file, memory));
    return LoadedKernel{elf.entry, elf.end, {}};
  }
  ASSIGN_OR_RETURN(BzImage image, ReadBzImage(file));
  ASSIGN_OR_RETURN(const Mapping packed,
                   Mapping::Create(UniqueFd(), image.payload_size, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, 0));
  const std::span<uint8_t> payload(packed.data(), image.payload_size);
  TRY(file.Read(image.payload_offset, payload));
  ASSIGN_OR_RETURN(const Unpacked unpacked, UnpackPayload(path_, payload));
  const BufferSource vmlinux(path_ + " (its " + unpacked.format + " payload)",
                             {unpacked.mapping.data(), unpacked.size});
  ASSIGN_OR_RETURN(const LoadedElf elf, LoadElf(vmlinux, memory));
  return LoadedKernel{elf.entry, elf.end, std::move(image.setup_header)};
}

}  // namespace forklet
