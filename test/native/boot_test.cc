#include <asm/bootparam.h>

#include <cstring>
#include <string>

#include "arch/x86_64/boot.h"
#include "arch/x86_64/command_line.h"
#include "arch/x86_64/cpuid.h"
#include "arch/x86_64/layout.h"
#include "arch/x86_64/mp_table.h"
#include "doctest.h"

namespace forklet {

namespace {
constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kGiB = 1u << 30;

GuestMemory Create(uint64_t bytes) {
  auto memory = GuestMemory::Create(bytes);
  REQUIRE(memory.ok());
  return std::move(memory).value();
}

boot_params ReadZeroPage(const GuestMemory& memory) {
  boot_params params;
  REQUIRE(memory.ReadObject(layout::kZeroPage, params));
  return params;
}

kvm_cpuid_entry2 Leaf(const CpuidTable& table, uint32_t function, uint32_t index) {
  for (uint32_t i = 0; i < table.count; ++i) {
    if (table.entries[i].function == function && table.entries[i].index == index) {
      return table.entries[i];
    }
  }
  FAIL("no such leaf");
  return {};
}
}  // namespace

TEST_CASE("The zero page describes exactly the guest's RAM") {
  const GuestMemory memory = Create(4 * kGiB);
  WriteBootParameters(memory, "quiet", {}, {});

  const boot_params params = ReadZeroPage(memory);

  REQUIRE(params.e820_entries == 4);
  // The table is packed, and what a check takes a reference to is aligned: a copy each.
  struct Entry {
    uint64_t address, bytes;
    uint32_t type;
  };
  std::vector<Entry> entries;
  for (int i = 0; i < params.e820_entries; ++i) {
    const auto& entry = params.e820_table[i];
    entries.push_back({entry.addr, entry.size, entry.type});
  }
  uint64_t ram = 0;
  for (const Entry& entry : entries) {
    if (entry.type == 1) ram += entry.bytes;
  }
  // Everything but what is kept below 1 MiB: exchange, mailbox, MP table and
  // legacy holes.
  CHECK(ram == 4 * kGiB - (layout::kHighRam - layout::kLowRamEnd));
  CHECK(entries[1].address == layout::kExchange.value);
  CHECK(entries[1].type == 2);
  CHECK(entries[3].address == layout::kHighRegion.value);
}

TEST_CASE("The zero page takes over a bzImage's setup header and keeps its own fields") {
  const GuestMemory memory = Create(32 * kMiB);
  setup_header header = {};
  header.version = 0x020f;
  header.cmd_line_ptr = 0xdead;
  std::vector<uint8_t> bytes(sizeof header + 16);  // A later protocol's is longer
  std::memcpy(bytes.data(), &header, sizeof header);

  WriteBootParameters(memory, "quiet", {}, bytes);

  const boot_params params = ReadZeroPage(memory);
  CHECK(params.hdr.version == 0x020f);
  CHECK(params.hdr.cmd_line_ptr == layout::kCommandLine.value);
  CHECK(params.hdr.cmdline_size == 5);
  CHECK(params.e820_entries == 3);
}

TEST_CASE("The zero page says where the ACPI tables begin") {
  const GuestMemory memory = Create(32 * kMiB);

  WriteBootParameters(memory, "quiet", {}, {});

  CHECK(ReadZeroPage(memory).acpi_rsdp_addr == layout::kRsdp.value);
}

TEST_CASE("The initramfs lies at the top of low memory, segments back to back") {
  const GuestMemory memory = Create(64 * kMiB);

  auto range = LoadInitramfs(memory, {{1, 2, 3, 4}, {5, 6, 7, 8}}, GuestAddress{16 * kMiB});

  REQUIRE(range.ok());
  CHECK(range.value().size == 8);
  CHECK(range.value().start == GuestAddress{64 * kMiB - layout::kPageSize});
  std::array<uint8_t, 8> bytes;
  REQUIRE(memory.Read(range.value().start, bytes));
  CHECK(bytes == std::array<uint8_t, 8>{1, 2, 3, 4, 5, 6, 7, 8});
}

TEST_CASE("An initramfs without room to unpack is refused, naming the option") {
  const GuestMemory memory = Create(64 * kMiB);

  auto range = LoadInitramfs(memory, {std::vector<uint8_t>(24 * kMiB)}, GuestAddress{16 * kMiB});

  REQUIRE_FALSE(range.ok());
  CHECK(range.error().code == ErrorCode::kNoMemory);
  CHECK(range.error().detail.find("memoryBytes") != std::string::npos);
}

TEST_CASE("The MP table's checksums hold, and every vCPU is in it") {
  const GuestMemory memory = Create(32 * kMiB);

  WriteMpTable(memory, kMaxVcpus, /*virtio_devices=*/2);

  std::array<uint8_t, 16> pointer;
  REQUIRE(memory.Read(layout::kMpTable, pointer));
  CHECK(std::memcmp(pointer.data(), "_MP_", 4) == 0);
  uint8_t sum = 0;
  for (const uint8_t byte : pointer) sum += byte;
  CHECK(sum == 0);

  uint16_t length;
  REQUIRE(memory.ReadObject(layout::kMpTable + 16 + 4, length));
  std::vector<uint8_t> table(length);
  REQUIRE(memory.Read(layout::kMpTable + 16, table));
  sum = 0;
  for (const uint8_t byte : table) sum += byte;
  CHECK(sum == 0);
  for (uint32_t id = 0; id < kMaxVcpus; ++id) {
    CHECK(table[44 + 20 * id] == 0);       // Processor entry
    CHECK(table[44 + 20 * id + 1] == id);  // Its APIC id
  }
}

TEST_CASE("The MP table wires the serial port, each virtio device and the doorbell") {
  const GuestMemory memory = Create(32 * kMiB);

  WriteMpTable(memory, /*vcpus=*/1, /*virtio_devices=*/2);

  // Behind header, processor, bus and IOAPIC: 8 bytes a pin, its type first, the
  // ISA interrupt and the pin at 5 and 7.
  std::array<uint8_t, 32> pins;
  REQUIRE(memory.Read(layout::kMpTable + 16 + 44 + 20 + 8 + 8, pins));
  for (size_t i = 0; i < 4; ++i) {
    CHECK(pins[8 * i] == 3);
    CHECK(pins[8 * i + 5] == pins[8 * i + 7]);
  }
  CHECK(pins[7] == layout::kSerialGsi);
  CHECK(pins[15] == layout::kVirtioGsi);
  CHECK(pins[23] == layout::kVirtioGsi + 1);
  CHECK(pins[31] == layout::kDoorbellGsi);
}

TEST_CASE("The command line tells the guest where to meet its host") {
  auto line = ComposeCommandLine(HostProfile{}, 0, "");

  REQUIRE(line.ok());
  CHECK(line.value().find(" forklet.doorbell=0xd0000000 forklet.mailbox=0x9e000"
                          " forklet.exchange=0x8f000 forklet.irq=7") != std::string::npos);
}

TEST_CASE("The command line hides CPU features only on hosts that cannot mask CPUID") {
  HostProfile masked;
  HostProfile unmasked;
  unmasked.cpuid_unmasked = true;

  auto plain = ComposeCommandLine(masked, 2, "");
  auto hidden = ComposeCommandLine(unmasked, 2, "");

  REQUIRE(plain.ok());
  REQUIRE(hidden.ok());
  CHECK(plain.value().find("clearcpuid") == std::string::npos);
  CHECK(hidden.value().find("clearcpuid") != std::string::npos);
  CHECK(plain.value().find("virtio_mmio.device=4K@0xd0002000:6") != std::string::npos);
}

TEST_CASE("The command line ends with the caller's arguments, and has a limit") {
  auto fits = ComposeCommandLine(HostProfile{}, 0, "quiet");
  REQUIRE(fits.ok());
  CHECK(fits.value().ends_with(" quiet"));

  auto too_long = ComposeCommandLine(HostProfile{}, 0, std::string(2048, 'x'));
  REQUIRE_FALSE(too_long.ok());
  CHECK(too_long.error().detail.find("kernelArgs") != std::string::npos);
}

TEST_CASE("Each vCPU sees its own APIC id and the number of its siblings") {
  CpuidTable supported;
  supported.count = 3;
  supported.entries[0].function = 1;
  supported.entries[1].function = 0xb;  // Level 0 alone, as Linux 6.1 reports it
  supported.entries[1].flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  supported.entries[2].function = 0xa;
  supported.entries[2].eax = 0x12345678;

  const CpuidTable table = VcpuCpuid(supported, /*id=*/3, /*vcpus=*/6, /*tsc_deadline=*/true);

  CHECK((Leaf(table, 1, 0).ebx >> 24) == 3);
  CHECK((Leaf(table, 1, 0).ebx >> 16 & 0xff) == 8);  // A power of two, at least 6
  CHECK((Leaf(table, 1, 0).ecx >> 24 & 1) == 1);
  CHECK(Leaf(table, 0xb, 0).edx == 3);
  CHECK(Leaf(table, 0xb, 1).eax == 3);  // Bits of the APIC id below the package
  CHECK(Leaf(table, 0xb, 1).ebx == 6);
  CHECK(Leaf(table, 0xb, 1).edx == 3);
  CHECK(Leaf(table, 0xb, 1).flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
  CHECK(Leaf(table, 0xa, 0).eax == 0);  // No performance counters
}

TEST_CASE("No vCPU is offered virtualization of its own") {
  CpuidTable supported;
  supported.count = 3;
  supported.entries[0].function = 1;
  supported.entries[1].function = 0x80000001;
  supported.entries[2].function = 0x8000000a;
  for (uint32_t i = 0; i < supported.count; ++i) {
    kvm_cpuid_entry2& entry = supported.entries[i];
    entry.eax = entry.ebx = entry.ecx = entry.edx = 0xffffffff;
  }

  const CpuidTable table = VcpuCpuid(supported, /*id=*/0, /*vcpus=*/1, /*tsc_deadline=*/true);

  CHECK((Leaf(table, 1, 0).ecx & 1u << 5) == 0);           // VMX
  CHECK((Leaf(table, 0x80000001, 0).ecx & 1u << 2) == 0);  // SVM
  CHECK(Leaf(table, 0x8000000a, 0).edx == 0);              // SVM's features
}

TEST_CASE("A vCPU has nothing of KVM's that would interrupt a fork or write to its memory") {
  constexpr uint32_t kKvmFeatures = 0x40000001;
  CpuidTable supported;
  supported.count = 1;
  supported.entries[0].function = kKvmFeatures;
  supported.entries[0].eax = 0xffffffff;

  const CpuidTable table = VcpuCpuid(supported, /*id=*/0, /*vcpus=*/1, /*tsc_deadline=*/true);

  const uint32_t features = Leaf(table, kKvmFeatures, 0).eax;
  CHECK((features & 1u << 3) != 0);   // kvm-clock stays
  CHECK((features & 1u << 4) == 0);   // Asynchronous page faults
  CHECK((features & 1u << 5) == 0);   // Stolen time
  CHECK((features & 1u << 14) == 0);  // Asynchronous page faults by interrupt
}

}  // namespace forklet
