#include "arch/x86_64/mp_table.h"

#include <cstring>
#include <vector>

#include "arch/x86_64/firmware_table.h"
#include "arch/x86_64/layout.h"
#include "base/mutant.h"

namespace forklet {

namespace {

// MultiProcessor specification 1.4, chapter 4. All structures are packed by
// their layout; the asserts hold the sizes to the specification.
struct FloatingPointer {
  char signature[4];
  uint32_t table;
  uint8_t length_paragraphs;
  uint8_t revision;
  uint8_t checksum;
  uint8_t features[5];
};
static_assert(sizeof(FloatingPointer) == 16);

struct TableHeader {
  char signature[4];
  uint16_t length;
  uint8_t revision;
  uint8_t checksum;
  char oem[8];
  char product[12];
  uint32_t oem_table;
  uint16_t oem_length;
  uint16_t entries;
  uint32_t local_apic;
  uint32_t reserved;
};
static_assert(sizeof(TableHeader) == 44);

struct Processor {
  uint8_t type = 0;
  uint8_t apic_id;
  uint8_t apic_version = 0x14;  // Integrated APIC
  uint8_t flags;                // Bit 0: enabled, bit 1: boot processor
  uint32_t signature = 0x600;   // Family 6; Linux reads CPUID instead
  uint32_t features = 0x201;    // FPU and APIC; likewise
  uint32_t reserved[2] = {};
};
static_assert(sizeof(Processor) == 20);

struct Bus {
  uint8_t type = 1;
  uint8_t id = 0;
  char name[6] = {'I', 'S', 'A', ' ', ' ', ' '};
};
static_assert(sizeof(Bus) == 8);

struct IoApic {
  uint8_t type = 2;
  uint8_t id = kIoApicId;
  uint8_t version = 0x11;
  uint8_t flags = 1;  // Usable
  uint32_t address = static_cast<uint32_t>(layout::kIoApic.value);
};
static_assert(sizeof(IoApic) == 8);

struct Interrupt {
  uint8_t type;            // 3: IOAPIC pin, 4: local APIC pin
  uint8_t interrupt_type;  // 0: vectored, 1: NMI, 3: ExtINT
  uint16_t flags = 0;      // Polarity and trigger as the bus has them: ISA edges
  uint8_t source_bus = 0;
  uint8_t source_irq = 0;
  uint8_t destination_id;
  uint8_t destination_pin;
};
static_assert(sizeof(Interrupt) == 8);

constexpr uint8_t kAllLocalApics = 0xff;

}  // namespace

void WriteMpTable(const GuestMemory& memory, uint32_t vcpus, uint32_t virtio_devices) {
  CHECK(vcpus >= 1 && vcpus <= kMaxVcpus);
  // Two devices on one pin would need drivers that share it.
  CHECK(layout::kVirtioGsi + virtio_devices <= layout::kDoorbellGsi);
  if (kMutant == Mutant::kOneProcessor) vcpus = 1;
  std::vector<uint8_t> table(sizeof(TableHeader));
  uint16_t entries = 0;
  const auto add = [&](const auto& entry) {
    Append(table, entry);
    ++entries;
  };
  for (uint32_t id = 0; id < vcpus; ++id) {
    add(Processor{.apic_id = static_cast<uint8_t>(id),
                  .flags = static_cast<uint8_t>(id == 0 ? 3 : 1)});
  }
  add(Bus{});
  add(IoApic{});
  const auto add_pin = [&](uint32_t gsi) {
    add(Interrupt{.type = 3,
                  .interrupt_type = 0,
                  .source_irq = static_cast<uint8_t>(gsi),
                  .destination_id = kIoApicId,
                  .destination_pin = static_cast<uint8_t>(gsi)});
  };
  add_pin(layout::kSerialGsi);
  for (uint32_t i = 0; i < virtio_devices; ++i) add_pin(layout::kVirtioGsi + i);
  add_pin(layout::kDoorbellGsi);
  add(Interrupt{.type = 4, .interrupt_type = 3, .destination_id = 0, .destination_pin = 0});
  add(Interrupt{
      .type = 4, .interrupt_type = 1, .destination_id = kAllLocalApics, .destination_pin = 1});

  TableHeader header = {};
  std::memcpy(header.signature, "PCMP", 4);
  header.length = static_cast<uint16_t>(table.size());
  header.revision = 4;
  std::memcpy(header.oem, "FORKLET ", 8);
  std::memcpy(header.product, "MICROVM     ", 12);
  header.entries = entries;
  header.local_apic = static_cast<uint32_t>(layout::kLocalApic.value);
  std::memcpy(table.data(), &header, sizeof header);
  header.checksum = Checksum(table.data(), table.size());
  std::memcpy(table.data(), &header, sizeof header);

  const GuestAddress table_address = layout::kMpTable + sizeof(FloatingPointer);
  FloatingPointer pointer = {};
  std::memcpy(pointer.signature, "_MP_", 4);
  pointer.table = static_cast<uint32_t>(table_address.value);
  pointer.length_paragraphs = 1;
  pointer.revision = 4;
  pointer.checksum = Checksum(&pointer, sizeof pointer);

  CHECK(sizeof pointer + table.size() <= layout::kMpTableEnd - layout::kMpTable);
  // Guest memory is at least 32 MiB, so that low addresses are always RAM.
  CHECK(memory.WriteObject(layout::kMpTable, pointer));
  CHECK(memory.Write(table_address, table));
}

}  // namespace forklet
