// Freezing, forking and rolling back guest memory.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "arch/x86_64/layout.h"
#include "doctest.h"
#include "memory/guest_memory.h"
#include "memory/page_scan.h"
#include "value.h"

namespace forklet {

namespace {
constexpr uint64_t kPage = layout::kPageSize;
constexpr uint64_t kBytes = 32u << 20;

using test::Value;

void Put(const GuestMemory& memory, uint64_t page, uint32_t value) {
  REQUIRE(memory.Store(GuestAddress{page * kPage}, value, __ATOMIC_RELAXED));
}
uint32_t Get(const GuestMemory& memory, uint64_t page) {
  uint32_t value = 0;
  REQUIRE(memory.Load(GuestAddress{page * kPage}, value, __ATOMIC_RELAXED));
  return value;
}
GuestMemory Fork(const std::shared_ptr<const MemoryImage>& image) {
  GuestMemory memory = Value(GuestMemory::Reserve(image->bytes()));
  REQUIRE(memory.Map(image).ok());
  return memory;
}
uint64_t AllocatedPages(const UniqueFd& file) {
  struct stat status = {};
  REQUIRE(::fstat(file.get(), &status) == 0);
  return static_cast<uint64_t>(status.st_blocks) * 512 / kPage;
}
}  // namespace

TEST_CASE("A RAM file can neither shrink nor grow") {
  const UniqueFd file = Value(CreateRamFile(kBytes));

  CHECK(::ftruncate(file.get(), 4096) != 0);
  CHECK(::ftruncate(file.get(), 2 * kBytes) != 0);
}

TEST_CASE("Freezing memory that was booted copies nothing and seals it") {
  GuestMemory memory = Value(GuestMemory::Create(kBytes));
  Put(memory, 7, 1);

  const auto image = Value(memory.Freeze());

  CHECK(image->packed_pages() == 0);
  CHECK(Get(memory, 7) == 1);
  CHECK((::fcntl(image->base()->get(), F_GET_SEALS) & F_SEAL_WRITE) != 0);
  CHECK(::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, image->base()->get(), 0) ==
        MAP_FAILED);
}

TEST_CASE("No write crosses between a frozen memory, its image and its forks") {
  GuestMemory parent = Value(GuestMemory::Create(kBytes));
  Put(parent, 1, 10);
  const auto image = Value(parent.Freeze());
  const GuestMemory left = Fork(image);
  const GuestMemory right = Fork(image);

  Put(parent, 1, 11);
  Put(left, 1, 12);
  Put(left, 2, 13);

  CHECK(Get(parent, 1) == 11);
  CHECK(Get(left, 1) == 12);
  CHECK(Get(right, 1) == 10);
  CHECK(Get(right, 2) == 0);
  CHECK(Get(Fork(image), 1) == 10);
}

TEST_CASE("A fork holds the pages that it wrote, and no more") {
  GuestMemory parent = Value(GuestMemory::Create(kBytes));
  Put(parent, 3, 1);
  const GuestMemory fork = Fork(Value(parent.Freeze()));

  CHECK(Value(fork.AllocatedBytes()) == 0);
  CHECK(Get(fork, 3) == 1);
  CHECK(Value(fork.AllocatedBytes()) == 0);
  Put(fork, 3, 2);
  Put(fork, 4, 2);
  Put(fork, 4000, 2);
  CHECK(Value(fork.AllocatedBytes()) == 3 * kPage);
}

TEST_CASE("Freezing a fork copies the pages that it wrote since it was made") {
  GuestMemory parent = Value(GuestMemory::Create(kBytes));
  Put(parent, 1, 10);
  Put(parent, 2, 20);
  GuestMemory fork = Fork(Value(parent.Freeze()));
  Put(fork, 2, 21);
  Put(fork, 5, 50);

  const auto image = Value(fork.Freeze());

  REQUIRE(image->packed_pages() == 2);
  const GuestMemory grandchild = Fork(image);
  Put(fork, 5, 51);
  CHECK(Get(grandchild, 1) == 10);
  CHECK(Get(grandchild, 2) == 21);
  CHECK(Get(grandchild, 5) == 50);
}

TEST_CASE("Forks of forks see what each of their ancestors wrote, to any depth") {
  constexpr uint32_t kDepth = 32;
  GuestMemory memory = Value(GuestMemory::Create(kBytes));
  for (uint32_t depth = 0; depth < kDepth; ++depth) {
    Put(memory, depth * 100, depth + 1);
    Put(memory, 8000, depth);
    memory = Fork(Value(memory.Freeze()));
  }

  for (uint32_t depth = 0; depth < kDepth; ++depth) CHECK(Get(memory, depth * 100) == depth + 1);
  CHECK(Get(memory, 8000) == kDepth - 1);
}

TEST_CASE("A flattened image has the same contents and no packed pages") {
  GuestMemory parent = Value(GuestMemory::Create(kBytes));
  Put(parent, 1, 10);
  Put(parent, 6000, 60);
  GuestMemory fork = Fork(Value(parent.Freeze()));
  Put(fork, 1, 11);
  Put(fork, 300, 30);

  const auto flat = Value(Value(fork.Freeze())->Flatten());

  CHECK(flat->packed_pages() == 0);
  const GuestMemory copy = Fork(flat);
  CHECK(Get(copy, 1) == 11);
  CHECK(Get(copy, 300) == 30);
  CHECK(Get(copy, 6000) == 60);
  // Holes stay holes, but for those that the reads above have filled.
  CHECK(AllocatedPages(*flat->base()) <= 4);
}

TEST_CASE("Rolling back undoes every write since the memory was mapped") {
  GuestMemory parent = Value(GuestMemory::Create(kBytes));
  Put(parent, 1, 10);
  GuestMemory first = Fork(Value(parent.Freeze()));
  Put(first, 2, 20);
  GuestMemory fork = Fork(Value(first.Freeze()));
  Put(fork, 1, 99);
  Put(fork, 2, 99);
  Put(fork, 3, 99);

  REQUIRE(fork.RollBack(Value(fork.WrittenPages())).ok());

  CHECK(Get(fork, 1) == 10);
  CHECK(Get(fork, 2) == 20);
  CHECK(Get(fork, 3) == 0);
}

TEST_CASE("Rolling back drops thousands of scattered pages as well") {
  GuestMemory parent = Value(GuestMemory::Create(64u << 20));
  GuestMemory fork = Fork(Value(parent.Freeze()));
  for (uint64_t page = 0; page < 16384; page += 2) Put(fork, page, 1);

  REQUIRE(fork.RollBack(Value(fork.WrittenPages())).ok());

  CHECK(Value(fork.AllocatedBytes()) == 0);
  CHECK(Get(fork, 16382) == 0);
}

TEST_CASE("Both ways of finding private pages agree") {
  GuestMemory parent = Value(GuestMemory::Create(kBytes));
  Put(parent, 100, 1);
  const GuestMemory fork = Fork(Value(parent.Freeze()));
  for (uint64_t page : {0u, 1u, 2u, 77u, 4095u, 4096u, 8191u}) Put(fork, page, 1);
  CHECK(Get(fork, 100) == 1);
  const uint8_t* start = fork.Range(GuestAddress{0}, kBytes);

  const auto scanned = Value(ScanPrivatePages(start, kBytes));
  const auto read = Value(ReadPrivatePages(start, kBytes));

  CHECK(CountPages(scanned) == 7);
  const auto same = [](const PageRun& a, const PageRun& b) {
    return a.first == b.first && a.count == b.count;
  };
  CHECK(std::equal(scanned.begin(), scanned.end(), read.begin(), read.end(), same));
}

// What is behind the end of a file looks like a hole.
TEST_CASE("Reading an image whose file was cut off fails, wherever it was") {
  // Sealed memory cannot be cut off. No O_TMPFILE, which overlayfs lacks before Linux 6.3.
  char path[] = "/tmp/forklet-image.XXXXXX";
  const auto file = std::make_shared<const UniqueFd>(::mkostemp(path, O_CLOEXEC));
  REQUIRE(*file);
  REQUIRE(::unlink(path) == 0);
  REQUIRE(::ftruncate(file->get(), kBytes) == 0);
  const uint32_t value = 7;
  REQUIRE(::pwrite(file->get(), &value, sizeof value, 5 * kPage) == sizeof value);
  const auto image = MemoryImage::FromFile(file, kBytes, MemoryImage::Backing::kDisk);
  const auto read = [&image] {
    MemoryImageReader reader(image);
    uint64_t offset = 0;
    std::span<const uint8_t> data;
    for (;;) {
      const auto more = reader.Next(offset, data);
      if (!more.ok()) return more.error().code == ErrorCode::kIo ? "kIo" : "another error";
      if (!more.value()) return "complete";
    }
  };
  CHECK(read() == std::string("complete"));

  for (const uint64_t size : {kBytes - 1, 5 * kPage, uint64_t{0}}) {
    REQUIRE(::ftruncate(file->get(), static_cast<off_t>(size)) == 0);
    CHECK(image->IsCutOff());
    CHECK(read() == std::string("kIo"));
  }
}

TEST_CASE("Reading an image gives the base with the packed pages on top, and no holes") {
  GuestMemory parent = Value(GuestMemory::Create(kBytes));
  Put(parent, 1, 10);
  Put(parent, 6000, 60);
  GuestMemory fork = Fork(Value(parent.Freeze()));
  Put(fork, 1, 11);
  Put(fork, 300, 30);
  Put(fork, 8191, 80);
  MemoryImageReader reader(Value(fork.Freeze()));
  std::vector<uint32_t> seen(kBytes / kPage);
  uint64_t end = 0;
  uint64_t total = 0;

  uint64_t offset = 0;
  std::span<const uint8_t> data;
  while (Value(reader.Next(offset, data))) {
    REQUIRE(offset >= end);
    REQUIRE(offset % kPage == 0);
    REQUIRE(data.size() % kPage == 0);
    for (uint64_t i = 0; i < data.size(); i += kPage) {
      std::memcpy(&seen[(offset + i) / kPage], data.data() + i, sizeof(uint32_t));
    }
    end = offset + data.size();
    total += data.size();
  }

  CHECK(seen[1] == 11);
  CHECK(seen[300] == 30);
  CHECK(seen[6000] == 60);
  CHECK(seen[8191] == 80);
  CHECK(std::count(seen.begin(), seen.end(), 0u) == static_cast<long>(seen.size()) - 4);
  CHECK(total <= 8 * kPage);
}

}  // namespace forklet
