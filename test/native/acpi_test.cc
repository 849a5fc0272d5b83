#include "arch/x86_64/acpi.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "arch/x86_64/layout.h"
#include "arch/x86_64/mp_table.h"
#include "doctest.h"

namespace forklet {
namespace {

using Table = std::vector<uint8_t>;

constexpr size_t kHeaderBytes = 36;

uint8_t Sum(const Table& bytes, size_t size) {
  return std::accumulate(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size), uint8_t{0},
                         [](uint8_t a, uint8_t b) { return static_cast<uint8_t>(a + b); });
}

template <class T>
T Field(const Table& table, size_t offset) {
  T value;
  REQUIRE(offset + sizeof value <= table.size());
  std::memcpy(&value, table.data() + offset, sizeof value);
  return value;
}

std::string Signature(const Table& table, size_t size = 4) {
  return {reinterpret_cast<const char*>(table.data()), size};
}

// Reads the tables as a kernel does, from the root pointer on.
struct Fixture {
  GuestMemory memory = [] {
    auto created = GuestMemory::Create(32u << 20);
    REQUIRE(created.ok());
    return std::move(created).value();
  }();
  Table rsdp, xsdt, fadt, madt, dsdt;

  Table Read(uint64_t address, size_t size) const {
    Table bytes(size);
    REQUIRE(memory.Read(GuestAddress{address}, bytes));
    return bytes;
  }

  Table ReadTable(uint64_t address) const {
    return Read(address, Field<uint32_t>(Read(address, kHeaderBytes), 4));
  }

  void Write(uint32_t vcpus, uint32_t virtio_devices) {
    WriteAcpiTables(memory, vcpus, virtio_devices);
    rsdp = Read(layout::kRsdp.value, 36);
    xsdt = ReadTable(Field<uint64_t>(rsdp, 24));
    fadt = ReadTable(Field<uint64_t>(xsdt, kHeaderBytes));
    madt = ReadTable(Field<uint64_t>(xsdt, kHeaderBytes + 8));
    dsdt = ReadTable(Field<uint64_t>(fadt, 140));
  }
};

TEST_CASE_FIXTURE(Fixture, "The ACPI tables are found from the root pointer, and add up") {
  Write(/*vcpus=*/kMaxVcpus, /*virtio_devices=*/16);

  CHECK_EQ(Signature(rsdp, 8), "RSD PTR ");
  CHECK_EQ(rsdp[15], 2);
  CHECK_EQ(Sum(rsdp, 20), 0);
  CHECK_EQ(Sum(rsdp, 36), 0);
  CHECK_EQ(Signature(xsdt), "XSDT");
  CHECK_EQ(xsdt.size(), kHeaderBytes + 2 * 8);
  CHECK_EQ(Signature(fadt), "FACP");
  CHECK_EQ(Signature(madt), "APIC");
  CHECK_EQ(Signature(dsdt), "DSDT");
  for (const Table& table : {xsdt, fadt, madt, dsdt}) CHECK_EQ(Sum(table, table.size()), 0);
}

// Offsets: ACPI 6.4 §5.2.9.
TEST_CASE_FIXTURE(Fixture, "The FADT tells of a hardware-reduced system that sleeps by two ports") {
  Write(1, 2);

  REQUIRE_EQ(fadt.size(), 276);
  CHECK_EQ(fadt[8], 6);
  CHECK_EQ(Field<uint32_t>(fadt, 112) & (1u << 20), 1u << 20);  // HW_REDUCED_ACPI
  CHECK_EQ(Field<uint32_t>(fadt, 112) & (1u << 10), 1u << 10);  // RESET_REG_SUP
  CHECK_EQ(Field<uint16_t>(fadt, 109), 1u << 2 | 1u << 5);      // Neither VGA nor CMOS clock
  struct {
    const char* name;
    size_t offset;
    uint64_t port;
  } const registers[] = {{"RESET_REG", 116, 0x601},
                         {"SLEEP_CONTROL_REG", 244, 0x600},
                         {"SLEEP_STATUS_REG", 256, 0x600}};
  for (const auto& expected : registers) {
    CAPTURE(expected.name);
    CHECK_EQ(fadt[expected.offset], 1);      // Port I/O
    CHECK_EQ(fadt[expected.offset + 1], 8);  // Bits
    CHECK_EQ(Field<uint64_t>(fadt, expected.offset + 4), expected.port);
  }
  CHECK_EQ(fadt[128], 1);  // RESET_VALUE
}

// Structures: ACPI 6.4 §5.2.12.
TEST_CASE_FIXTURE(Fixture, "The MADT has each vCPU, enabled, and the IOAPIC") {
  Write(/*vcpus=*/3, 2);

  CHECK_EQ(Field<uint32_t>(madt, 36), 0xfee00000);
  CHECK_EQ(Field<uint32_t>(madt, 40), 0);
  REQUIRE_EQ(madt.size(), kHeaderBytes + 8 + 3 * 8 + 12);
  for (uint8_t id = 0; id < 3; ++id) {
    const size_t at = kHeaderBytes + 8 + id * 8u;
    CHECK_EQ(Table(madt.begin() + static_cast<ptrdiff_t>(at),
                   madt.begin() + static_cast<ptrdiff_t>(at + 8)),
             Table{0, 8, id, id, 1, 0, 0, 0});
  }
  const size_t ioapic = kHeaderBytes + 8 + 3 * 8;
  CHECK_EQ(madt[ioapic], 1);
  CHECK_EQ(madt[ioapic + 1], 12);
  CHECK_EQ(madt[ioapic + 2], kIoApicId);
  CHECK_EQ(Field<uint32_t>(madt, ioapic + 4), 0xfec00000);
  CHECK_EQ(Field<uint32_t>(madt, ioapic + 8), 0);
}

Table ReadFile(const std::string& path) {
  Table bytes(1u << 16);
  FILE* file = std::fopen(path.c_str(), "re");
  REQUIRE(file != nullptr);
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
  std::fclose(file);
  return bytes;
}

// Compiles dsdt.asl with ACPICA's iasl, which writes `prefix`.aml.
int Compile(std::string prefix) {
  std::string source = FORKLET_SOURCE_DIR "/test/native/dsdt.asl";
  std::string program = "iasl", no_messages = "-va", output = "-p";
  char* const arguments[] = {program.data(), no_messages.data(), output.data(),
                             prefix.data(),  source.data(),      nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int error = posix_spawnp(&child, "iasl", &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  REQUIRE_MESSAGE(error == 0, "errno of iasl, which the package acpica-tools has: ", error);
  int status = -1;
  REQUIRE_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST_CASE_FIXTURE(Fixture, "The DSDT is what the reference compiler makes of its source") {
  Write(1, /*virtio_devices=*/2);
  char directory[] = "/tmp/forklet-dsdt-XXXXXX";
  REQUIRE(::mkdtemp(directory) != nullptr);
  const std::string prefix = std::string(directory) + "/dsdt";

  const int status = Compile(prefix);

  REQUIRE_EQ(status, 0);
  Table expected = ReadFile(prefix + ".aml");
  std::remove((prefix + ".aml").c_str());
  std::remove(directory);
  // The compiler signs with its own name and version, which changes the sum.
  REQUIRE_EQ(expected.size(), dsdt.size());
  for (const size_t offset : {9u, 28u, 29u, 30u, 31u, 32u, 33u, 34u, 35u}) {
    expected[offset] = dsdt[offset];
  }
  CHECK_EQ(dsdt, expected);
}

}  // namespace
}  // namespace forklet
