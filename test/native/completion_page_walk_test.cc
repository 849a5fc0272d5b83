#include "arch/x86_64/completion/page_walk.h"

#include <sched.h>

#include <random>

#include "base/thread.h"
#include "completion_fixture.h"
#include "doctest.h"

namespace forklet::test {
namespace {

using Status = PageTranslation::Status;

constexpr uint64_t kAddress = 0x7f1234567abc;
constexpr uint64_t kPage = kAddress & ~uint64_t{0xfff};

struct Walker {
  Walker() {
    control = FakeCpu().control;
    control.cr3 = space.root().value;
    page = space.NewPage();
  }

  PageTranslation Translate(MemoryAccess access, uint64_t address = kAddress) {
    return PageWalker(space.memory(), control, rflags, pkru).Translate(address, access);
  }
  // The error code of the page fault that the access ends in.
  uint32_t Fault(MemoryAccess access, uint64_t address = kAddress) {
    const PageTranslation translation = Translate(access, address);
    REQUIRE(translation.status == Status::kPageFault);
    return translation.error_code;
  }
  bool Allows(MemoryAccess access) { return Translate(access).status == Status::kOk; }

  GuestSpace space;
  GuestAddress page;
  CpuControl control;
  uint64_t rflags = 2;
  uint32_t pkru = 0;
};

// Moves the calling thread to other CPUs, if there are any: two threads on one
// CPU do not race.
void LeaveCpu(int cpu) {
  cpu_set_t allowed;
  CHECK(::sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  if (CPU_COUNT(&allowed) < 2) return;
  CPU_CLR(cpu, &allowed);
  CHECK(::sched_setaffinity(0, sizeof allowed, &allowed) == 0);
}

}  // namespace

TEST_CASE("A page of 4 KiB is found, and marked accessed and dirty at the right levels") {
  Walker walker;
  walker.space.Map(kPage, walker.page, kPresent | kWritable);

  const PageTranslation read = walker.Translate(MemoryAccess::kRead);
  CHECK(read.status == Status::kOk);
  CHECK(read.host == walker.space.memory().Range(walker.page + 0xabc, 1));
  for (int level = 1; level <= 4; ++level) {
    CHECK((walker.space.Entry(kAddress, level) & (kAccessed | kDirty)) == kAccessed);
  }

  CHECK(walker.Translate(MemoryAccess::kWrite).status == Status::kOk);
  CHECK((walker.space.Entry(kAddress) & kDirty) != 0);
  for (int level = 2; level <= 4; ++level) {
    CHECK((walker.space.Entry(kAddress, level) & kDirty) == 0);
  }
}

TEST_CASE("Pages of 2 MiB and 1 GiB are found, with their PAT bit ignored") {
  constexpr uint64_t kPat = 0x1000;
  Walker walker;
  walker.space.Entry(kAddress, 2) = 0x400000 | kPat | kPresent | kWritable | kLarge;
  const PageTranslation two = walker.Translate(MemoryAccess::kWrite);
  CHECK(two.host == walker.space.memory().Range(GuestAddress{0x400000 + kAddress % 0x200000}, 1));
  CHECK((walker.space.Entry(kAddress, 2) & kDirty) != 0);

  walker.space.Entry(kAddress, 3) = kPat | kPresent | kLarge;
  constexpr uint64_t kLow = (kAddress & ~uint64_t{0x3fffffff}) | 0x12345;
  CHECK(walker.Translate(MemoryAccess::kRead, kLow).host ==
        walker.space.memory().Range(GuestAddress{0x12345}, 1));
}

TEST_CASE("Five levels are walked with LA57") {
  Walker walker;
  walker.control.cr4 |= x86::kCr4La57;
  const GuestAddress top = walker.space.NewPage();
  walker.control.cr3 = top.value | 0x18;  // PWT and PCD are no part of the address
  const uint64_t address = kAddress | uint64_t{0x11} << 48;
  walker.space.Map(kPage, walker.page, kPresent);
  REQUIRE(walker.space.memory().WriteObject(top + 0x11 * 8, walker.space.root().value | kPresent));
  CHECK(walker.Translate(MemoryAccess::kRead, address).host ==
        walker.space.memory().Range(walker.page + 0xabc, 1));
  walker.control.cr4 &= ~x86::kCr4La57;
  CHECK(walker.Translate(MemoryAccess::kRead, address).status == Status::kNotCanonical);
}

TEST_CASE("Addresses that are not canonical are told from those that are") {
  Walker walker;
  for (const uint64_t address :
       {uint64_t{0x0000800000000000}, uint64_t{0xffff7fffffffffff}, uint64_t{1} << 63}) {
    CHECK(walker.Translate(MemoryAccess::kRead, address).status == Status::kNotCanonical);
  }
  for (const uint64_t address : {uint64_t{0x00007fffffffffff}, uint64_t{0xffff800000000000}}) {
    CHECK(walker.Translate(MemoryAccess::kRead, address).status == Status::kPageFault);
  }
}

TEST_CASE("A missing entry at any level is a fault that says what was tried") {
  Walker walker;
  for (int level = 1; level <= 4; ++level) {
    CAPTURE(level);
    walker.space.Map(kPage, walker.page, kPresent | kWritable | kUser);
    walker.control.cpl = 0;
    walker.space.Entry(kAddress, level) &= ~kPresent;
    CHECK(walker.Fault(MemoryAccess::kRead) == 0);
    CHECK(walker.Fault(MemoryAccess::kWrite) == x86::kFaultWrite);
    CHECK(walker.Fault(MemoryAccess::kFetch) == x86::kFaultFetch);
    walker.control.cpl = 3;
    CHECK(walker.Fault(MemoryAccess::kWrite) == (x86::kFaultWrite | x86::kFaultUser));
    CHECK(walker.Fault(MemoryAccess::kSystemRead) == 0);
    walker.space.Entry(kAddress, level) |= kPresent;
  }
}

TEST_CASE("Fetch faults are only marked where NX or SMEP can cause them") {
  Walker walker;
  walker.control.efer &= ~x86::kEferNxe;
  CHECK(walker.Fault(MemoryAccess::kFetch) == 0);
  walker.control.cr4 |= x86::kCr4Smep;
  CHECK(walker.Fault(MemoryAccess::kFetch) == x86::kFaultFetch);
}

TEST_CASE("Read-only pages refuse writes, the kernel's only with WP") {
  Walker walker;
  walker.space.Map(kPage, walker.page, kPresent | kUser);
  CHECK(walker.Fault(MemoryAccess::kWrite) == (x86::kFaultPresent | x86::kFaultWrite));
  walker.control.cr0 &= ~x86::kCr0Wp;
  CHECK(walker.Allows(MemoryAccess::kWrite));
  walker.control.cpl = 3;
  CHECK(walker.Fault(MemoryAccess::kWrite) ==
        (x86::kFaultPresent | x86::kFaultWrite | x86::kFaultUser));
  // One level that forbids it is enough.
  walker.space.Entry(kAddress) |= kWritable;
  walker.space.Entry(kAddress, 3) &= ~kWritable;
  CHECK(walker.Fault(MemoryAccess::kWrite) ==
        (x86::kFaultPresent | x86::kFaultWrite | x86::kFaultUser));
}

TEST_CASE("User mode is kept out of the kernel's pages") {
  Walker walker;
  walker.control.cpl = 3;
  walker.space.Map(kPage, walker.page, kPresent | kWritable);
  CHECK(walker.Fault(MemoryAccess::kRead) == (x86::kFaultPresent | x86::kFaultUser));
  CHECK(walker.Allows(MemoryAccess::kSystemRead));
  walker.space.Entry(kAddress) |= kUser;
  CHECK(walker.Allows(MemoryAccess::kRead));
}

TEST_CASE("NX and SMEP stop fetches, SMAP stops the kernel unless AC is set") {
  Walker walker;
  walker.space.Map(kPage, walker.page, kPresent | kUser | kNoExecute);
  CHECK(walker.Fault(MemoryAccess::kFetch) == (x86::kFaultPresent | x86::kFaultFetch));
  CHECK(walker.Allows(MemoryAccess::kRead));
  walker.space.Entry(kAddress) &= ~kNoExecute;
  CHECK(walker.Allows(MemoryAccess::kFetch));
  walker.control.cr4 |= x86::kCr4Smep | x86::kCr4Smap;
  CHECK(walker.Fault(MemoryAccess::kFetch) == (x86::kFaultPresent | x86::kFaultFetch));
  CHECK(walker.Fault(MemoryAccess::kRead) == x86::kFaultPresent);
  walker.rflags |= x86::kFlagAc;
  CHECK(walker.Allows(MemoryAccess::kRead));
  CHECK(walker.Fault(MemoryAccess::kSystemRead) == x86::kFaultPresent);
  walker.control.cpl = 3;
  CHECK(walker.Allows(MemoryAccess::kFetch));
}

TEST_CASE("Protection keys guard user pages from data accesses") {
  constexpr uint64_t kKey5 = uint64_t{5} << 59;
  Walker walker;
  walker.space.Map(kPage, walker.page, kPresent | kWritable | kUser | kKey5);
  walker.pkru = 2u << 10;  // Write-disable for key 5
  CHECK(walker.Allows(MemoryAccess::kWrite));
  walker.control.cr4 |= x86::kCr4Pke;
  CHECK(walker.Allows(MemoryAccess::kRead));
  CHECK(walker.Fault(MemoryAccess::kWrite) ==
        (x86::kFaultPresent | x86::kFaultWrite | x86::kFaultKey));
  walker.pkru = 1u << 10;  // Access-disable
  CHECK(walker.Fault(MemoryAccess::kRead) == (x86::kFaultPresent | x86::kFaultKey));
  CHECK(walker.Allows(MemoryAccess::kFetch));
  walker.space.Entry(kAddress) &= ~kUser;
  CHECK(walker.Allows(MemoryAccess::kWrite));
}

TEST_CASE("Reserved bits are a fault of their own") {
  Walker walker;
  const uint32_t reserved = x86::kFaultPresent | x86::kFaultReserved;
  walker.space.Entry(kAddress, 2) = 0x400000 | 0x2000 | kPresent | kLarge;
  CHECK(walker.Fault(MemoryAccess::kRead) == reserved);
  walker.space.Entry(kAddress, 3) = 0x200000 | kPresent | kLarge;
  CHECK(walker.Fault(MemoryAccess::kRead) == reserved);
  walker.space.Entry(kAddress, 4) |= kLarge;
  CHECK(walker.Fault(MemoryAccess::kRead) == reserved);
  walker.space.Entry(kAddress, 4) = 0;
  walker.space.Map(kPage, walker.page, kPresent | kNoExecute);
  walker.control.efer &= ~x86::kEferNxe;
  CHECK(walker.Fault(MemoryAccess::kRead) == reserved);
}

TEST_CASE("A refused access sets no accessed and no dirty bit") {
  Walker walker;
  walker.space.Map(kPage, walker.page, kPresent);
  CHECK(walker.Fault(MemoryAccess::kWrite) == (x86::kFaultPresent | x86::kFaultWrite));
  for (int level = 1; level <= 4; ++level) {
    CHECK((walker.space.Entry(kAddress, level) & (kAccessed | kDirty)) == 0);
  }
}

TEST_CASE("Tables outside RAM are a page fault, a page outside RAM is told apart") {
  Walker walker;
  walker.space.Entry(kAddress, 2) = 0x000ffffffffff000 | kPresent;
  CHECK(walker.Fault(MemoryAccess::kRead) == 0);
  walker.control.cr3 = 0xd0000000;
  CHECK(walker.Fault(MemoryAccess::kRead) == 0);
  walker.control.cr3 = walker.space.root().value;
  walker.space.Entry(kAddress, 2) = 0;
  walker.space.Map(kPage, GuestAddress{0xd0000000}, kPresent);
  const PageTranslation outside = walker.Translate(MemoryAccess::kRead);
  CHECK(outside.status == Status::kNotRam);
  CHECK(outside.gpa == GuestAddress{0xd0000abc});
}

TEST_CASE("Page tables that contain themselves end like any other") {
  Walker walker;
  // The top table as the table of every level, and as the page.
  walker.space.Entry(0, 4) = walker.space.root().value | kPresent | kWritable;
  const PageTranslation self = walker.Translate(MemoryAccess::kWrite, 0);
  CHECK(self.status == Status::kOk);
  CHECK(self.host == walker.space.memory().Range(walker.space.root(), 1));
}

TEST_CASE("An entry that changes during the walk never gets the old one's bits") {
  Walker walker;
  walker.space.Map(kPage, walker.page, kPresent | kWritable);
  uint64_t& entry = walker.space.Entry(kAddress);
  const uint64_t mapped = entry;
  // A guest's other vCPU: unmaps and maps the page again and again. While it is
  // unmapped the entry is the kernel's own, and must stay zero.
  bool done = false;
  int spoiled = 0;
  const int cpu = ::sched_getcpu();
  auto other = Thread::Start("other-vcpu", [&] {
    LeaveCpu(cpu);
    while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) {
      __atomic_exchange_n(&entry, 0, __ATOMIC_SEQ_CST);
      for (int i = 0; i < 8; ++i) {
        if (__atomic_load_n(&entry, __ATOMIC_SEQ_CST) != 0) ++spoiled;
      }
      __atomic_store_n(&entry, mapped, __ATOMIC_SEQ_CST);
    }
  });
  REQUIRE(other.ok());
  for (int i = 0; i < 1000000; ++i) walker.Translate(MemoryAccess::kWrite);
  __atomic_store_n(&done, true, __ATOMIC_RELEASE);
  other.value().Join();
  CHECK(spoiled == 0);
}

TEST_CASE("Random page tables never lead outside the guest's memory") {
  Walker walker;
  std::mt19937_64 random(24);
  const GuestMemory& memory = walker.space.memory();
  auto* words = reinterpret_cast<uint64_t*>(memory.Range(GuestAddress{0}, memory.bytes()));
  const size_t count = memory.bytes() / sizeof(uint64_t);
  for (size_t i = 0; i < count; ++i) {
    // Mostly present, mostly inside or near the guest's memory.
    words[i] = (random() & 0x80000000'01ffffff) | (random() % 4 != 0 ? kPresent : 0);
  }
  for (int i = 0; i < 200000; ++i) {
    walker.control.cr3 = random() & 0x7ff000;
    walker.control.cpl = random() % 2 == 0 ? 0 : 3;
    const auto address = static_cast<uint64_t>(static_cast<int64_t>(random() << 16) >> 16);
    const auto access = static_cast<MemoryAccess>(random() % 4);
    const PageTranslation translation = walker.Translate(access, address);
    if (translation.status != Status::kOk) continue;
    const auto offset = static_cast<uint64_t>(translation.host - memory.Range(GuestAddress{0}, 1));
    REQUIRE(offset < memory.bytes());
    // The whole rest of the page is the guest's.
    volatile uint8_t last = *(translation.host + (4095 - address % 4096));
    static_cast<void>(last);
  }
}

}  // namespace forklet::test
