#include "arch/x86_64/kernel/payload.h"

#include <lz4.h>
#include <lzma.h>
#include <sys/mman.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cstring>

#include "arch/x86_64/kernel/image_source.h"

namespace forklet {
namespace {

using Bytes = std::span<const uint8_t>;
using Buffer = std::span<uint8_t>;

constexpr const char* kTooLarge = "it unpacks to more than 256 MiB";
constexpr const char* kTruncated = "truncated";
constexpr const char* kCorrupt = "corrupt data";
constexpr const char* kNoMemory = "no memory to unpack it";

// Outcome of a decoder: `error` is nullptr on success.
struct Decoded {
  size_t size = 0;
  const char* error = nullptr;
};

Decoded DecodeGzip(Bytes in, Buffer out) {
  z_stream stream = {};
  // Lifetime: zlib takes a pointer to non-const, and writes nothing through it.
  stream.next_in = const_cast<Bytef*>(in.data());
  // Bounds: the payload's size is a 32-bit field, the buffer has 256 MiB.
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  constexpr int kGzipWrapper = 16;
  if (inflateInit2(&stream, MAX_WBITS + kGzipWrapper) != Z_OK) return {0, kNoMemory};
  const int result = inflate(&stream, Z_FINISH);
  const Decoded decoded{stream.total_out, nullptr};
  const bool full = stream.avail_out == 0;
  inflateEnd(&stream);
  switch (result) {
    case Z_STREAM_END:
      return decoded;
    case Z_OK:
    case Z_BUF_ERROR:
      return {0, full ? kTooLarge : kTruncated};
    case Z_MEM_ERROR:
      return {0, kNoMemory};
    default:
      return {0, kCorrupt};
  }
}

// Both containers of LZMA: the stream says when it has ended.
Decoded RunLzma(lzma_stream& stream, lzma_ret initialised, Bytes in, Buffer out) {
  if (initialised != LZMA_OK) return {0, kNoMemory};
  stream.next_in = in.data();
  stream.avail_in = in.size();
  stream.next_out = out.data();
  stream.avail_out = out.size();
  lzma_ret result = LZMA_OK;
  while (result == LZMA_OK) result = lzma_code(&stream, LZMA_FINISH);
  const Decoded decoded{static_cast<size_t>(stream.total_out), nullptr};
  const bool full = stream.avail_out == 0;
  lzma_end(&stream);
  switch (result) {
    case LZMA_STREAM_END:
      return decoded;
    case LZMA_BUF_ERROR:
      return {0, full ? kTooLarge : kTruncated};
    case LZMA_MEM_ERROR:
      return {0, kNoMemory};
    case LZMA_MEMLIMIT_ERROR:
      return {0, "its dictionary is too large"};
    case LZMA_OPTIONS_ERROR:
      return {0, "its XZ options are not supported"};
    default:
      return {0, kCorrupt};
  }
}

// Kernels use dictionaries of up to 128 MiB; the decoder needs little more.
constexpr uint64_t kLzmaMemoryBytes = uint64_t{192} << 20;

Decoded DecodeXz(Bytes in, Buffer out) {
  lzma_stream stream = LZMA_STREAM_INIT;
  return RunLzma(stream, lzma_stream_decoder(&stream, kLzmaMemoryBytes, 0), in, out);
}

Decoded DecodeLzma(Bytes in, Buffer out) {
  lzma_stream stream = LZMA_STREAM_INIT;
  return RunLzma(stream, lzma_alone_decoder(&stream, kLzmaMemoryBytes), in, out);
}

// The legacy frame: a magic number, then blocks of a 32-bit size and data that
// unpacks to 8 MiB, or less for the last. It has no end mark: the kernel's
// build appends the unpacked size, four bytes that no block follows.
Decoded DecodeLz4(Bytes in, Buffer out) {
  constexpr size_t kBlockBytes = size_t{8} << 20;
  constexpr size_t kFieldBytes = 4;
  size_t size = 0;
  in = in.subspan(kFieldBytes);
  while (in.size() > kFieldBytes) {
    uint32_t packed;
    std::memcpy(&packed, in.data(), sizeof packed);
    in = in.subspan(kFieldBytes);
    if (packed > in.size()) return {0, kTruncated};
    if (packed == 0 || packed > static_cast<uint32_t>(LZ4_COMPRESSBOUND(kBlockBytes))) {
      return {0, kCorrupt};
    }
    const size_t room = std::min(out.size() - size, kBlockBytes);
    if (room == 0) return {0, kTooLarge};
    const int unpacked = LZ4_decompress_safe(reinterpret_cast<const char*>(in.data()),
                                             reinterpret_cast<char*>(out.data() + size),
                                             static_cast<int>(packed), static_cast<int>(room));
    if (unpacked < 0) return {0, room < kBlockBytes ? kTooLarge : kCorrupt};
    size += static_cast<size_t>(unpacked);
    in = in.subspan(packed);
  }
  return {size, nullptr};
}

Decoded DecodeZstd(Bytes in, Buffer out) {
  const size_t frame = ZSTD_findFrameCompressedSize(in.data(), in.size());
  if (ZSTD_isError(frame)) {
    return {0, ZSTD_getErrorCode(frame) == ZSTD_error_srcSize_wrong ? kTruncated : kCorrupt};
  }
  const size_t size = ZSTD_decompress(out.data(), out.size(), in.data(), frame);
  if (!ZSTD_isError(size)) return {size, nullptr};
  switch (ZSTD_getErrorCode(size)) {
    case ZSTD_error_dstSize_tooSmall:
      return {0, kTooLarge};
    case ZSTD_error_memory_allocation:
      return {0, kNoMemory};
    default:
      return {0, kCorrupt};
  }
}

Decoded CopyPlain(Bytes in, Buffer out) {
  if (in.size() > out.size()) return {0, kTooLarge};
  std::memcpy(out.data(), in.data(), in.size());
  return {in.size(), nullptr};
}

struct Format {
  const char* name;
  size_t magic_bytes;
  uint8_t magic[9];
  Decoded (*decode)(Bytes, Buffer);  // nullptr: known, and not supported
};

constexpr Format kFormats[] = {
    {"gzip", 2, {0x1f, 0x8b}, DecodeGzip},
    {"XZ", 6, {0xfd, '7', 'z', 'X', 'Z', 0}, DecodeXz},
    {"LZ4", 4, {0x02, 0x21, 0x4c, 0x18}, DecodeLz4},
    {"zstd", 4, {0x28, 0xb5, 0x2f, 0xfd}, DecodeZstd},
    {"LZMA", 3, {0x5d, 0, 0}, DecodeLzma},
    {"uncompressed", 4, {0x7f, 'E', 'L', 'F'}, CopyPlain},
    {"LZO", 9, {0x89, 'L', 'Z', 'O', 0, '\r', '\n', 0x1a, '\n'}, nullptr},
    {"bzip2", 3, {'B', 'Z', 'h'}, nullptr},
};

const Format* FindFormat(Bytes payload) {
  for (const Format& format : kFormats) {
    if (payload.size() >= format.magic_bytes &&
        std::memcmp(payload.data(), format.magic, format.magic_bytes) == 0) {
      return &format;
    }
  }
  return nullptr;
}

}  // namespace

Result<Unpacked> UnpackPayload(const std::string& name, Bytes payload) {
  const Format* format = FindFormat(payload);
  if (format == nullptr) {
    std::string start;
    for (uint8_t byte : payload.first(std::min<size_t>(payload.size(), 4))) {
      start += " " + Hex(byte);
    }
    return BadKernel(name, "payload of an unknown compression, starting with" + start);
  }
  if (format->decode == nullptr) {
    return BadKernel(name, std::string("unsupported compression '") + format->name +
                               "'; gzip, XZ, LZMA, LZ4 and zstd are supported");
  }
  // Only what is written to takes memory.
  ASSIGN_OR_RETURN(Mapping mapping,
                   Mapping::Create(UniqueFd(), kMaxUnpackedBytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, 0));
  const Decoded decoded = format->decode(payload, {mapping.data(), mapping.size()});
  if (decoded.error != nullptr) {
    return BadKernel(name, std::string(format->name) + " payload: " + decoded.error);
  }
  return Unpacked{std::move(mapping), decoded.size, format->name};
}

}  // namespace forklet
