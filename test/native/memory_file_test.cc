#include "snapshot/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/file_io.h"
#include "base/mapping.h"
#include "base/thread.h"
#include "base/xxhash64.h"
#include "snapshot/state_file.h"

#include "doctest.h"

namespace forklet {
namespace {

constexpr uint64_t kPage = 4096;
// Two chunks and a half.
constexpr uint64_t kBytes = 5 * kSnapshotChunkBytes / 2;

UniqueFd TemporaryFile() {
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  UniqueFd fd(::dup(::fileno(file)));
  std::fclose(file);
  return fd;
}

// A memory with pages in its first chunk, at the end of the second, and none in
// the last.
struct Memory {
  std::vector<uint8_t> bytes = std::vector<uint8_t>(kBytes);
  UniqueFd fd = TemporaryFile();

  Memory() {
    Fill(0, 1);
    Fill(1, 2);
    Fill(5, 3);
    Fill(511, 4);
  }
  void Fill(uint64_t page, uint8_t value) {
    std::memset(bytes.data() + page * kPage, value, kPage);
  }
  MemoryPiece Piece(uint64_t first_page, uint64_t pages) const {
    return {first_page * kPage, std::span(bytes).subspan(first_page * kPage, pages * kPage)};
  }
  Result<std::vector<uint64_t>> Write(std::vector<MemoryPiece> pieces) const {
    return WriteMemoryFile(fd, kBytes, SourceOf(std::move(pieces), nullptr), nullptr);
  }
  std::vector<uint8_t> Written() const {
    std::vector<uint8_t> contents(kBytes);
    REQUIRE(ReadAt(fd, contents, 0).ok());
    REQUIRE_EQ(::lseek(fd.get(), 0, SEEK_END), kBytes);
    return contents;
  }
  std::vector<uint64_t> Checksums() const {
    std::vector<uint64_t> checksums;
    for (uint64_t at = 0; at < kBytes; at += kSnapshotChunkBytes) {
      const uint64_t size = std::min(kSnapshotChunkBytes, kBytes - at);
      checksums.push_back(Xxhash64::Of(std::span(bytes).subspan(at, size)));
    }
    return checksums;
  }
};

TEST_CASE_FIXTURE(Memory, "A memory file has the memory's bytes and checksums, however it is cut") {
  const std::vector<std::vector<MemoryPiece>> cuts = {
      {Piece(0, kBytes / kPage)},
      {Piece(0, 2), Piece(5, 1), Piece(511, 1)},
      {Piece(0, 1), Piece(1, 5), Piece(510, 4), Piece(639, 1)},
  };
  for (const std::vector<MemoryPiece>& pieces : cuts) {
    REQUIRE_EQ(::ftruncate(fd.get(), 0), 0);
    const auto checksums = Write(pieces);
    REQUIRE(checksums.ok());
    CHECK(Written() == bytes);
    CHECK_EQ(checksums.value(), Checksums());
  }
}

TEST_CASE_FIXTURE(Memory, "A memory file has holes where the memory has pages of zeros") {
  REQUIRE(Write({Piece(0, kBytes / kPage)}).ok());
  const auto ranges = FindData(fd, kBytes);
  REQUIRE(ranges.ok());
  CHECK_EQ(ranges.value(),
           std::vector<FileRange>{{0, 2 * kPage}, {5 * kPage, kPage}, {511 * kPage, kPage}});
}

TEST_CASE_FIXTURE(Memory, "A page with one byte that is not zero is written") {
  Fill(0, 0);
  bytes[0] = 1;
  Fill(1, 0);
  bytes[2 * kPage - 1] = 1;
  REQUIRE(Write({Piece(0, kBytes / kPage)}).ok());
  CHECK(Written() == bytes);
}

TEST_CASE_FIXTURE(Memory, "A memory of nothing but zeros is a file without data") {
  const auto checksums = Write({});
  REQUIRE(checksums.ok());
  std::fill(bytes.begin(), bytes.end(), uint8_t{0});
  CHECK_EQ(checksums.value(), Checksums());
  CHECK(FindData(fd, kBytes).value().empty());
  CHECK(VerifyMemoryFile(fd, kBytes, checksums.value(), nullptr).ok());
}

TEST_CASE_FIXTURE(Memory, "Verifying finds any byte that is not what it was") {
  const auto checksums = Write({Piece(0, kBytes / kPage)});
  REQUIRE(checksums.ok());
  REQUIRE(VerifyMemoryFile(fd, kBytes, checksums.value(), nullptr).ok());
  // In a page of data, in a hole, and in the short last chunk.
  for (uint64_t at : {uint64_t{17}, 300 * kPage, kBytes - 1}) {
    const uint8_t wrong[] = {0xee};
    const uint8_t right[] = {bytes[at]};
    REQUIRE(WriteAt(fd, wrong, at).ok());
    const Status status = VerifyMemoryFile(fd, kBytes, checksums.value(), nullptr);
    REQUIRE_FALSE(status.ok());
    CHECK_EQ(status.error().code, ErrorCode::kBadSnapshot);
    const uint64_t chunk = at / kSnapshotChunkBytes * kSnapshotChunkBytes;
    CHECK_NE(status.error().detail.find("at byte " + std::to_string(chunk) + ":"),
             std::string::npos);
    REQUIRE(WriteAt(fd, right, at).ok());
  }
  CHECK(VerifyMemoryFile(fd, kBytes, checksums.value(), nullptr).ok());
}

TEST_CASE_FIXTURE(Memory, "Verifying a file that was truncated fails") {
  const auto checksums = Write({Piece(0, kBytes / kPage)});
  REQUIRE(checksums.ok());
  REQUIRE_EQ(::ftruncate(fd.get(), kPage), 0);
  CHECK_FALSE(VerifyMemoryFile(fd, kBytes, checksums.value(), nullptr).ok());
}

TEST_CASE_FIXTURE(Memory, "Writing and verifying stop when they are cancelled") {
  std::atomic<bool> cancelled = false;
  int pieces = 0;
  const auto written = WriteMemoryFile(
      fd, kBytes,
      [&]() -> Result<std::optional<MemoryPiece>> {
        if (++pieces == 2) cancelled = true;
        return std::optional(Piece(static_cast<uint64_t>(pieces), 1));
      },
      &cancelled);
  REQUIRE_FALSE(written.ok());
  CHECK_EQ(written.error().sys_errno, ECANCELED);
  CHECK_EQ(pieces, 2);

  cancelled = false;
  const auto checksums = Write({Piece(0, kBytes / kPage)});
  REQUIRE(checksums.ok());
  cancelled = true;
  const Status verified = VerifyMemoryFile(fd, kBytes, checksums.value(), &cancelled);
  REQUIRE_FALSE(verified.ok());
  CHECK_EQ(verified.error().sys_errno, ECANCELED);
}

TEST_CASE_FIXTURE(Memory, "A memory that cannot be written is an error with the errno") {
  const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  const auto written = WriteMemoryFile(full, kBytes, SourceOf({Piece(0, 1)}, nullptr), nullptr);
  REQUIRE_FALSE(written.ok());
  CHECK_EQ(written.error().code, ErrorCode::kSystem);
  CHECK_EQ(written.error().sys_errno, ENOSPC);
}

// The memory of a snapshot that was loaded is a file, and may fail like one.
TEST_CASE_FIXTURE(Memory, "A memory whose own file fails is not saved as zeros") {
  const UniqueFd source = TemporaryFile();
  REQUIRE(WriteAt(source, bytes, 0).ok());
  const Mapping mapping =
      Mapping::Create(source, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0).value();
  const auto guard = FaultGuard::Create(mapping.data(), kBytes);
  REQUIRE(guard.ok());
  REQUIRE_EQ(::ftruncate(source.get(), 0), 0);
  Result<std::vector<uint64_t>> written = std::vector<uint64_t>();

  auto thread = Thread::Start("test", [&] {
    const MemoryPiece piece{0, {mapping.data(), kBytes}};
    written = WriteMemoryFile(fd, kBytes, SourceOf({piece}, guard.value().get()), nullptr);
  });
  REQUIRE(thread.ok());
  thread.value().Join();

  REQUIRE_FALSE(written.ok());
  CHECK_EQ(written.error().code, ErrorCode::kIo);
}

}  // namespace
}  // namespace forklet
