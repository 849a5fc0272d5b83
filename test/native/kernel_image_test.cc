#include "arch/x86_64/kernel/kernel_image.h"

#include <elf.h>
#include <fcntl.h>
#include <lz4.h>
#include <lz4hc.h>
#include <lzma.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "doctest.h"

namespace forklet {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kTextAddress = 0x1000000;
constexpr uint64_t kDataAddress = 0x1200000;

GuestMemory CreateMemory(uint64_t bytes = 64 * kMiB) {
  auto memory = GuestMemory::Create(bytes);
  REQUIRE(memory.ok());
  return std::move(memory).value();
}

// A file in memory, which has a path as long as it lives.
class TestFile {
 public:
  explicit TestFile(const Bytes& content) : fd_(::memfd_create("kernel", MFD_CLOEXEC)) {
    REQUIRE(::write(fd_.get(), content.data(), content.size()) ==
            static_cast<ssize_t>(content.size()));
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_.get()); }
  void Truncate(uint64_t size) { REQUIRE(::ftruncate(fd_.get(), static_cast<off_t>(size)) == 0); }

 private:
  UniqueFd fd_;
};

// An ELF kernel of two segments: text, and data with bss behind it.
struct Elf {
  Elf() {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_ident[EI_VERSION] = EV_CURRENT;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_version = EV_CURRENT;
    header.e_entry = kTextAddress + 0x10;
    header.e_phoff = sizeof header;
    header.e_ehsize = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 3;
    text = {PT_LOAD, PF_R | PF_X, 0x1000, 0xffffffff81000000, kTextAddress, 0x3000, 0x3000, 0x1000};
    data = {PT_LOAD, PF_R | PF_W, 0x4000, 0xffffffff81200000, kDataAddress, 0x800, 0x2345, 0x1000};
    note = {PT_NOTE, PF_R, 0x1000, 0, 0, 16, 16, 4};
  }
  Bytes Build() const {
    Bytes bytes(0x4800);
    for (size_t i = 0x1000; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 251);
    std::memcpy(bytes.data(), &header, sizeof header);
    const Elf64_Phdr headers[] = {text, data, note};
    std::memcpy(bytes.data() + sizeof header, headers, sizeof headers);
    return bytes;
  }

  Elf64_Ehdr header = {};
  Elf64_Phdr text, data, note;
};

void Put(Bytes& bytes, size_t offset, uint64_t value, size_t size) {
  std::memcpy(bytes.data() + offset, &value, size);
}

Bytes BuildBzImage(const Bytes& payload) {
  constexpr size_t kSetupBytes = 5 * 512;
  constexpr size_t kPayloadAt = 0x40;
  Bytes bytes(kSetupBytes + kPayloadAt);
  bytes[0x1f1] = 4;
  Put(bytes, 0x1fe, 0xaa55, 2);
  bytes[0x200] = 0xeb;
  bytes[0x201] = 0x6a;  // The header ends at 0x26c
  std::memcpy(bytes.data() + 0x202, "HdrS", 4);
  Put(bytes, 0x206, 0x20f, 2);
  bytes[0x211] = 1;
  Put(bytes, 0x236, 1, 2);
  Put(bytes, 0x248, kPayloadAt, 4);
  Put(bytes, 0x24c, payload.size(), 4);
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  bytes.resize(bytes.size() + 100, 0xee);  // What follows the payload is not its
  return bytes;
}

Bytes Gzip(const Bytes& plain) {
  Bytes packed(plain.size() + 1000);
  z_stream stream = {};
  REQUIRE(deflateInit2(&stream, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  stream.next_in = const_cast<Bytef*>(plain.data());
  stream.avail_in = static_cast<uInt>(plain.size());
  stream.next_out = packed.data();
  stream.avail_out = static_cast<uInt>(packed.size());
  REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

Bytes Lzma(const Bytes& plain, const std::function<lzma_ret(lzma_stream*)>& start) {
  Bytes packed(plain.size() + 1000);
  lzma_stream stream = LZMA_STREAM_INIT;
  REQUIRE(start(&stream) == LZMA_OK);
  stream.next_in = plain.data();
  stream.avail_in = plain.size();
  stream.next_out = packed.data();
  stream.avail_out = packed.size();
  REQUIRE(lzma_code(&stream, LZMA_FINISH) == LZMA_STREAM_END);
  packed.resize(stream.total_out);
  lzma_end(&stream);
  return packed;
}

// As the kernel packs itself: with a filter for x86 code.
Bytes Xz(const Bytes& plain) {
  return Lzma(plain, [](lzma_stream* stream) {
    static lzma_options_lzma options;
    lzma_lzma_preset(&options, 6);
    static const lzma_filter filters[] = {
        {LZMA_FILTER_X86, nullptr}, {LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, nullptr}};
    return lzma_stream_encoder(stream, filters, LZMA_CHECK_CRC32);
  });
}

Bytes LzmaAlone(const Bytes& plain) {
  return Lzma(plain, [](lzma_stream* stream) {
    static lzma_options_lzma options;
    lzma_lzma_preset(&options, 6);
    return lzma_alone_encoder(stream, &options);
  });
}

Bytes Lz4(const Bytes& plain) {
  constexpr size_t kBlock = 8 << 20;
  Bytes packed = {0x02, 0x21, 0x4c, 0x18};
  for (size_t at = 0; at < plain.size(); at += kBlock) {
    const size_t count = std::min(kBlock, plain.size() - at);
    Bytes block(static_cast<size_t>(LZ4_compressBound(static_cast<int>(count))));
    const int size = LZ4_compress_HC(reinterpret_cast<const char*>(plain.data() + at),
                                     reinterpret_cast<char*>(block.data()), static_cast<int>(count),
                                     static_cast<int>(block.size()), 9);
    REQUIRE(size > 0);
    block.resize(static_cast<size_t>(size));
    packed.resize(packed.size() + 4);
    Put(packed, packed.size() - 4, block.size(), 4);
    packed.insert(packed.end(), block.begin(), block.end());
  }
  return packed;
}

Bytes Zstd(const Bytes& plain) {
  Bytes packed(ZSTD_compressBound(plain.size()));
  packed.resize(ZSTD_compress(packed.data(), packed.size(), plain.data(), plain.size(), 3));
  return packed;
}

// The kernel's build appends the unpacked size to all formats but gzip.
Bytes WithSize(Bytes packed, size_t size) {
  packed.resize(packed.size() + 4);
  Put(packed, packed.size() - 4, size, 4);
  return packed;
}

// Opens and loads; the message of whichever failed.
std::string MessageFor(const Bytes& content, uint64_t memory_bytes = 64 * kMiB) {
  const TestFile file(content);
  const GuestMemory memory = CreateMemory(memory_bytes);
  auto image = KernelImage::Open(file.path());
  if (!image.ok()) {
    CHECK(image.error().code == ErrorCode::kBadKernel);
    CHECK(image.error().detail.find(file.path()) == 0);
    return image.error().detail.substr(file.path().size());
  }
  auto loaded = image.value().Load(memory);
  if (!loaded.ok()) {
    CHECK(loaded.error().code == ErrorCode::kBadKernel);
    CHECK(loaded.error().detail.find(file.path()) == 0);
    return loaded.error().detail.substr(file.path().size());
  }
  return {};
}

std::string MessageFor(const Elf& elf) { return MessageFor(elf.Build()); }

void CheckLoaded(const GuestMemory& memory, const LoadedKernel& kernel) {
  const Bytes file = Elf().Build();
  CHECK(kernel.entry == GuestAddress{kTextAddress + 0x10});
  CHECK(kernel.end == GuestAddress{kDataAddress + 0x3000});
  CHECK(std::memcmp(memory.Range(GuestAddress{kTextAddress}, 0x3000), file.data() + 0x1000,
                    0x3000) == 0);
  CHECK(std::memcmp(memory.Range(GuestAddress{kDataAddress}, 0x800), file.data() + 0x4000, 0x800) ==
        0);
  const uint8_t* bss = memory.Range(GuestAddress{kDataAddress + 0x800}, 0x2345 - 0x800);
  CHECK(std::all_of(bss, bss + 0x2345 - 0x800, [](uint8_t byte) { return byte == 0; }));
}

}  // namespace

TEST_CASE("An ELF vmlinux is loaded at its physical addresses") {
  const TestFile file(Elf().Build());
  const GuestMemory memory = CreateMemory();
  auto image = KernelImage::Open(file.path());
  REQUIRE(image.ok());
  auto kernel = image.value().Load(memory);
  REQUIRE(kernel.ok());
  CheckLoaded(memory, kernel.value());
  CHECK_FALSE(image.value().is_bzimage());
  CHECK(kernel.value().setup_header.empty());
}

TEST_CASE("A bzImage is unpacked from every compression, with its size appended or not") {
  const Bytes plain = Elf().Build();
  const Bytes payloads[] = {Gzip(plain),
                            WithSize(Xz(plain), plain.size()),
                            Xz(plain),
                            WithSize(LzmaAlone(plain), plain.size()),
                            WithSize(Lz4(plain), plain.size()),
                            Lz4(plain),
                            WithSize(Zstd(plain), plain.size()),
                            Zstd(plain),
                            plain};
  for (const Bytes& payload : payloads) {
    CAPTURE(int{payload[0]});
    const Bytes content = BuildBzImage(payload);
    const TestFile file(content);
    const GuestMemory memory = CreateMemory();
    auto image = KernelImage::Open(file.path());
    REQUIRE(image.ok());
    auto kernel = image.value().Load(memory);
    REQUIRE_MESSAGE(kernel.ok(), (kernel.ok() ? "" : kernel.error().Message()));
    CheckLoaded(memory, kernel.value());
    CHECK(image.value().is_bzimage());
    CHECK(kernel.value().setup_header == Bytes(content.begin() + 0x1f1, content.begin() + 0x26c));
  }
}

TEST_CASE("A payload of more than one LZ4 block is unpacked whole") {
  Bytes plain = Elf().Build();
  plain.resize(17 << 20, 0x5a);
  CHECK(MessageFor(BuildBzImage(WithSize(Lz4(plain), plain.size()))).empty());
}

TEST_CASE("What is not a regular file with a kernel in it is named") {
  const auto open_error = [](const std::string& path) {
    auto image = KernelImage::Open(path);
    REQUIRE_FALSE(image.ok());
    CHECK(image.error().code == ErrorCode::kBadKernel);
    CHECK(image.error().detail.find(path) == 0);
    return image.error();
  };
  CHECK(open_error("/nonexistent/vmlinux").sys_errno == ENOENT);
  CHECK(open_error("/nonexistent/vmlinux").op == "open");
  CHECK(open_error("/").detail == "/: is a directory; a regular file is needed");
  CHECK(open_error("/dev/null").detail ==
        "/dev/null: is a character device; a regular file is needed");

  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reader(ends[0]), writer(ends[1]);
  // Opening must not wait for the other end.
  const std::string fifo = "/proc/self/fd/" + std::to_string(reader.get());
  CHECK(open_error(fifo).detail == fifo + ": is a FIFO; a regular file is needed");

  CHECK(MessageFor(Bytes{}) == ": is empty");
  CHECK(MessageFor(Bytes{'x'}) == ": neither an ELF vmlinux nor a bzImage");
  CHECK(MessageFor(Bytes(8192, 'x')) == ": neither an ELF vmlinux nor a bzImage");
}

TEST_CASE("An ELF file that is no x86-64 kernel is told by its header") {
  Elf elf;
  elf.header.e_machine = EM_AARCH64;
  CHECK(MessageFor(elf) == ": wrong machine 'AArch64'; an x86-64 kernel is needed");
  elf = Elf();
  elf.header.e_ident[EI_CLASS] = ELFCLASS32;
  CHECK(MessageFor(elf) == ": a 32-bit ELF file; an x86-64 kernel is needed");
  elf = Elf();
  elf.header.e_ident[EI_DATA] = ELFDATA2MSB;
  CHECK(MessageFor(elf) == ": not a little-endian ELF file");
  elf = Elf();
  elf.header.e_type = ET_DYN;
  CHECK(MessageFor(elf).find("a shared object") != std::string::npos);
  elf = Elf();
  elf.header.e_version = 2;
  CHECK(MessageFor(elf).find("ELF version 0x2") != std::string::npos);
  elf = Elf();
  elf.header.e_phentsize = 32;
  CHECK(MessageFor(elf).find("program headers of 32 bytes") != std::string::npos);
  for (const uint16_t count : {uint16_t{0}, uint16_t{129}, uint16_t{0xffff}}) {
    elf.header.e_phentsize = sizeof(Elf64_Phdr);
    elf.header.e_phnum = count;
    CHECK(MessageFor(elf).find(std::to_string(count) + " program headers") != std::string::npos);
  }
}

TEST_CASE("Segments that do not fit into the guest's memory are named") {
  Elf elf;
  elf.data.p_paddr = 64 * kMiB - 0x1000;
  CHECK(MessageFor(elf) ==
        ": segment at 0x3fff000, size 0x2345 lies outside the 64 MiB of guest memory below the "
        "MMIO hole");
  elf.data.p_paddr = ~uint64_t{0} - 0x1000;
  CHECK(MessageFor(elf).find("lies outside") != std::string::npos);
  elf.data.p_paddr = kDataAddress;
  elf.data.p_memsz = ~uint64_t{0};
  CHECK(MessageFor(elf).find("lies outside") != std::string::npos);
  elf = Elf();
  elf.text.p_paddr = 0x80000;
  CHECK(MessageFor(elf).find("lies below 1 MiB") != std::string::npos);
}

TEST_CASE("Segments and headers that leave the file are named") {
  Elf elf;
  elf.data.p_offset = 0x4001;
  CHECK(MessageFor(elf).find(": truncated: segment at 0x1200000") == 0);
  elf.data.p_offset = ~uint64_t{0};
  CHECK(MessageFor(elf).find(": truncated: segment at 0x1200000") == 0);
  elf = Elf();
  elf.data.p_filesz = ~uint64_t{0};
  elf.data.p_memsz = ~uint64_t{0};
  CHECK(MessageFor(elf).find(": truncated: segment at 0x1200000") == 0);
  elf = Elf();
  elf.data.p_filesz = 0x800, elf.data.p_memsz = 0x7ff;
  CHECK(MessageFor(elf).find("larger in the file") != std::string::npos);
  elf = Elf();
  elf.header.e_phoff = 0x4800 - 56;
  CHECK(MessageFor(elf).find(": truncated: 168 bytes at offset") == 0);
  elf.header.e_phoff = ~uint64_t{0};
  CHECK(MessageFor(elf).find(": truncated: 168 bytes at offset") == 0);

  const Bytes whole = Elf().Build();
  for (const size_t size : {4u, 15u, 16u, 63u, 64u, 100u, 0x1000u, 0x47ffu}) {
    CAPTURE(size);
    CHECK(MessageFor(Bytes(whole.begin(), whole.begin() + static_cast<long>(size)))
              .find(": truncated: ") == 0);
  }
}

TEST_CASE("Overlapping segments, none at all and an entry outside are refused") {
  Elf elf;
  elf.data.p_paddr = kTextAddress + 0x2fff;
  CHECK(MessageFor(elf).find("overlaps the segment at 0x1002fff") != std::string::npos);
  // The same the other way round in the file.
  elf.data.p_paddr = kTextAddress - 0x2344;
  CHECK(MessageFor(elf).find("overlaps") != std::string::npos);
  elf.data.p_paddr = kTextAddress - 0x2345;
  CHECK(MessageFor(elf).empty());

  elf = Elf();
  elf.text.p_type = elf.data.p_type = PT_NOTE;
  CHECK(MessageFor(elf) == ": no segment to load");
  elf = Elf();
  for (const uint64_t entry : {kTextAddress - 1, kTextAddress + 0x3000, kDataAddress + 0x800,
                               uint64_t{0xffffffff81000010}}) {
    elf.header.e_entry = entry;
    CHECK(MessageFor(elf).find("lies in no loaded segment") != std::string::npos);
  }
}

TEST_CASE("A bzImage's header is checked") {
  const Bytes good = BuildBzImage(Gzip(Elf().Build()));
  const auto with = [&](size_t offset, uint64_t value, size_t size) {
    Bytes bytes = good;
    Put(bytes, offset, value, size);
    return MessageFor(bytes);
  };
  CHECK(with(0x206, 0x207, 2) == ": a bzImage of boot protocol 2.07; 2.08 or later is needed");
  CHECK(with(0x211, 0, 1) == ": a zImage; a bzImage is needed");
  CHECK(with(0x236, 0, 2).find("32-bit kernel") != std::string::npos);
  CHECK(with(0x24c, 0, 4) == ": a bzImage without a payload");
  CHECK(with(0x24c, 0xffffffff, 4).find(": truncated: its payload of 0xffffffff") == 0);
  CHECK(with(0x248, 0xffffffff, 4).find(": truncated: its payload of") == 0);
  CHECK(with(0x1f1, 0xff, 1).find(": truncated: its payload of") == 0);
  CHECK(with(0x201, 0x10, 1).find("setup header that ends at 0x212") != std::string::npos);
  CHECK(with(0x201, 0xff, 1).find("setup header that ends at 0x301") != std::string::npos);
  CHECK(MessageFor(Bytes(good.begin(), good.begin() + 0x250)).find(": truncated: ") == 0);
}

TEST_CASE("Payloads that cannot be unpacked say why") {
  const Bytes plain = Elf().Build();
  CHECK(MessageFor(BuildBzImage({0x89, 'L', 'Z', 'O', 0, '\r', '\n', 0x1a, '\n', 0})) ==
        ": unsupported compression 'LZO'; gzip, XZ, LZMA, LZ4 and zstd are supported");
  CHECK(MessageFor(BuildBzImage({'B', 'Z', 'h', '9'})).find("'bzip2'") != std::string::npos);
  CHECK(MessageFor(BuildBzImage({1, 2, 3, 4, 5})) ==
        ": payload of an unknown compression, starting with 0x1 0x2 0x3 0x4");
  for (const Bytes& packed : {Gzip(plain), Xz(plain), LzmaAlone(plain), Lz4(plain), Zstd(plain)}) {
    CAPTURE(int{packed[0]});
    const Bytes half(packed.begin(), packed.begin() + static_cast<long>(packed.size() / 2));
    CHECK(MessageFor(BuildBzImage(half)).find("truncated") != std::string::npos);
    Bytes broken = packed;
    for (size_t i = 8; i < broken.size(); i += 5) broken[i] ^= 0x55;
    CHECK_FALSE(MessageFor(BuildBzImage(broken)).empty());
  }
  // What was packed is checked like any other ELF, and named as such.
  Elf elf;
  elf.header.e_machine = EM_RISCV;
  CHECK(MessageFor(BuildBzImage(Zstd(elf.Build()))) ==
        " (its zstd payload): wrong machine 'RISC-V'; an x86-64 kernel is needed");
}

TEST_CASE("A payload that unpacks without end is cut off") {
  const Bytes zeros(uint64_t{257} << 20);
  for (const Bytes& packed : {Gzip(zeros), Zstd(zeros)}) {
    CHECK(MessageFor(BuildBzImage(packed)).find("unpacks to more than 256 MiB") !=
          std::string::npos);
  }
}

TEST_CASE("A file that shrinks after it was opened is reported, not waited for") {
  TestFile file(Elf().Build());
  const GuestMemory memory = CreateMemory();
  auto image = KernelImage::Open(file.path());
  REQUIRE(image.ok());
  file.Truncate(0x2000);
  auto loaded = image.value().Load(memory);
  REQUIRE_FALSE(loaded.ok());
  CHECK(loaded.error().detail.find("truncated at 0x2000") != std::string::npos);
}

}  // namespace forklet
