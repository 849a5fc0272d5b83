#include "arch/x86_64/acpi.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <vector>

#include "arch/x86_64/aml.h"
#include "arch/x86_64/firmware_table.h"
#include "arch/x86_64/layout.h"
#include "arch/x86_64/mp_table.h"

namespace forklet {

namespace {

// ACPI 6.4 §5.2. The structures below are packed, as the tables are.
struct [[gnu::packed]] Rsdp {
  char signature[8];
  uint8_t checksum;  // Of the first 20 bytes
  char oem[6];
  uint8_t revision;
  uint32_t rsdt;
  uint32_t length;
  uint64_t xsdt;
  uint8_t extended_checksum;
  uint8_t reserved[3];
};
static_assert(sizeof(Rsdp) == 36);

struct [[gnu::packed]] TableHeader {
  char signature[4];
  uint32_t length;
  uint8_t revision;
  uint8_t checksum;
  char oem[6];
  char oem_table[8];
  uint32_t oem_revision;
  char creator[4];
  uint32_t creator_revision;
};
static_assert(sizeof(TableHeader) == 36);

struct [[gnu::packed]] GenericAddress {
  uint8_t space;  // 1: port I/O
  uint8_t bit_width;
  uint8_t bit_offset;
  uint8_t access_size;  // 1: byte
  uint64_t address;
};
static_assert(sizeof(GenericAddress) == 12);

// The FADT's fields that a hardware-reduced system fills in, with the offsets
// of §5.2.9.
struct [[gnu::packed]] FadtBody {
  uint8_t to_boot_flags[109 - 36];
  uint16_t boot_flags;
  uint8_t reserved;
  uint32_t flags;
  GenericAddress reset_register;
  uint8_t reset_value;
  uint16_t arm_boot_flags;
  uint8_t minor_version;
  uint64_t firmware_control;
  uint64_t dsdt;
  uint8_t to_sleep_control[244 - 148];
  GenericAddress sleep_control;
  GenericAddress sleep_status;
  uint64_t hypervisor;
};
static_assert(sizeof(TableHeader) + sizeof(FadtBody) == 276);

struct [[gnu::packed]] LocalApicEntry {
  uint8_t type = 0;
  uint8_t length = 8;
  uint8_t uid;
  uint8_t apic_id;
  uint32_t flags = 1;  // Enabled
};
struct [[gnu::packed]] IoApicEntry {
  uint8_t type = 1;
  uint8_t length = 12;
  uint8_t id = kIoApicId;
  uint8_t reserved = 0;
  uint32_t address = static_cast<uint32_t>(layout::kIoApic.value);
  uint32_t first_gsi = 0;
};

// IAPC_BOOT_ARCH. Bit 1, which is clear, would promise a keyboard controller.
constexpr uint16_t kNoVga = 1u << 2;
constexpr uint16_t kNoCmosRtc = 1u << 5;
// Flags. The buttons' say that there are none that fixed hardware would report.
constexpr uint32_t kWbinvd = 1u << 0;
constexpr uint32_t kPowerButton = 1u << 4;
constexpr uint32_t kSleepButton = 1u << 5;
constexpr uint32_t kResetRegister = 1u << 10;
constexpr uint32_t kHardwareReduced = 1u << 20;

// A table with its header and checksum.
std::vector<uint8_t> Table(const char* signature, uint8_t revision,
                           const std::vector<uint8_t>& body) {
  TableHeader header = {};
  std::memcpy(header.signature, signature, sizeof header.signature);
  header.length = static_cast<uint32_t>(sizeof header + body.size());
  header.revision = revision;
  std::memcpy(header.oem, "FRKLET", sizeof header.oem);
  std::memcpy(header.oem_table, "MICROVM ", sizeof header.oem_table);
  header.oem_revision = 1;
  std::memcpy(header.creator, "FRKL", sizeof header.creator);
  header.creator_revision = 1;
  std::vector<uint8_t> table(sizeof header + body.size());
  std::memcpy(table.data(), &header, sizeof header);
  std::copy(body.begin(), body.end(), table.begin() + sizeof header);
  table[offsetof(TableHeader, checksum)] = Checksum(table.data(), table.size());
  return table;
}

std::vector<uint8_t> Dsdt(uint32_t virtio_devices) {
  aml::Code devices = aml::Device(
      "COM1",
      aml::Join({aml::Name("_HID", aml::EisaId("PNP0501")), aml::Name("_UID", aml::Integer(0)),
                 aml::Name("_CRS", aml::ResourceTemplate(
                                       aml::Join({aml::Io(layout::kSerialPort, 8),
                                                  aml::Interrupt(layout::kSerialGsi)})))}));
  for (uint32_t i = 0; i < virtio_devices; ++i) {
    const auto address = static_cast<uint32_t>((layout::kVirtioMmio + i * layout::kPageSize).value);
    const aml::Code resources = aml::ResourceTemplate(aml::Join(
        {aml::Memory32Fixed(address, layout::kPageSize), aml::Interrupt(layout::kVirtioGsi + i)}));
    char name[8];
    std::snprintf(name, sizeof name, "VM%02X", i & 0xff);
    devices =
        aml::Join({devices, aml::Device(name, aml::Join({aml::Name("_HID", aml::String("LNRO0005")),
                                                         aml::Name("_UID", aml::Integer(i)),
                                                         aml::Name("_CCA", aml::Integer(1)),
                                                         aml::Name("_CRS", resources)}))});
  }
  const aml::Code s5 = aml::Package({aml::Integer(kAcpiSleepTypeS5), aml::Integer(0)});
  return Table("DSDT", 2, aml::Join({aml::Scope("_SB", devices), aml::Name("_S5", s5)}));
}

std::vector<uint8_t> Fadt(GuestAddress dsdt) {
  const auto port = [](uint16_t offset) {
    return GenericAddress{.space = 1,
                          .bit_width = 8,
                          .bit_offset = 0,
                          .access_size = 1,
                          .address = uint64_t{layout::kPowerPort} + offset};
  };
  FadtBody body = {};
  body.boot_flags = kNoVga | kNoCmosRtc;
  body.flags = kWbinvd | kPowerButton | kSleepButton | kResetRegister | kHardwareReduced;
  body.reset_register = port(kAcpiResetRegister);
  body.reset_value = kAcpiReset;
  body.minor_version = 4;
  body.dsdt = dsdt.value;
  body.sleep_control = port(kAcpiSleepControl);
  body.sleep_status = port(kAcpiSleepControl);
  std::vector<uint8_t> bytes;
  Append(bytes, body);
  return Table("FACP", 6, bytes);
}

std::vector<uint8_t> Madt(uint32_t vcpus) {
  std::vector<uint8_t> body;
  Append(body, static_cast<uint32_t>(layout::kLocalApic.value));
  Append(body, uint32_t{0});  // A hardware-reduced system has no PICs
  for (uint32_t id = 0; id < vcpus; ++id) {
    Append(body,
           LocalApicEntry{.uid = static_cast<uint8_t>(id), .apic_id = static_cast<uint8_t>(id)});
  }
  Append(body, IoApicEntry{});
  return Table("APIC", 5, body);
}

}  // namespace

void WriteAcpiTables(const GuestMemory& memory, uint32_t vcpus, uint32_t virtio_devices) {
  // Guest memory is at least 32 MiB, so that low addresses are always RAM.
  GuestAddress next = layout::kRsdp + sizeof(Rsdp);
  const auto put = [&](const std::vector<uint8_t>& table) {
    constexpr uint64_t kAlignment = 16;
    const GuestAddress address{(next.value + kAlignment - 1) & ~(kAlignment - 1)};
    CHECK(address.value + table.size() <= layout::kAcpiTablesEnd.value);
    CHECK(memory.Write(address, table));
    next = address + table.size();
    return address;
  };
  const GuestAddress dsdt = put(Dsdt(virtio_devices));
  const GuestAddress fadt = put(Fadt(dsdt));
  const GuestAddress madt = put(Madt(vcpus));
  std::vector<uint8_t> entries;
  Append(entries, fadt.value);
  Append(entries, madt.value);
  const GuestAddress xsdt = put(Table("XSDT", 1, entries));

  Rsdp rsdp = {};
  std::memcpy(rsdp.signature, "RSD PTR ", sizeof rsdp.signature);
  std::memcpy(rsdp.oem, "FRKLET", sizeof rsdp.oem);
  rsdp.revision = 2;
  rsdp.length = sizeof rsdp;
  rsdp.xsdt = xsdt.value;
  rsdp.checksum = Checksum(&rsdp, offsetof(Rsdp, length));
  rsdp.extended_checksum = Checksum(&rsdp, sizeof rsdp);
  CHECK(memory.WriteObject(layout::kRsdp, rsdp));
}

}  // namespace forklet
