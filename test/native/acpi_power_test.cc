#include "devices/acpi_power.h"

#include <vector>

#include "doctest.h"

namespace forklet {
namespace {

struct Fixture {
  std::vector<PowerEvent> events;
  AcpiPower power{[this](PowerEvent event) { events.push_back(event); }};

  void Write(uint64_t offset, std::vector<uint8_t> data) { power.Write(offset, data); }
};

TEST_CASE_FIXTURE(Fixture, "AcpiPower reports sleep state S5 and a reset") {
  Write(0, {0x34});  // SLP_EN, SLP_TYP 5
  Write(1, {0x01});

  CHECK_EQ(events, std::vector{PowerEvent::kPowerOff, PowerEvent::kRestart});
  CHECK_EQ(power.ignored_writes(), 0);
}

TEST_CASE_FIXTURE(Fixture, "AcpiPower ignores and counts other values, offsets and widths") {
  Write(0, {0x80});        // Clears the wake status, which every sleep begins with
  Write(0, {0x14});        // The sleep type without SLP_EN
  Write(0, {0x24});        // Another sleep type
  Write(0, {0x01});        // The reset value at the wrong port
  Write(1, {0x34});        // The sleep value at the wrong port
  Write(1, {0x00});        // No reset
  Write(0, {0x34, 0x01});  // Both registers at once
  Write(2, {0x34});

  CHECK(events.empty());
  CHECK_EQ(power.ignored_writes(), 8);
}

TEST_CASE_FIXTURE(Fixture, "AcpiPower reads as zero") {
  std::vector<uint8_t> data(2, 0xaa);

  power.Read(0, data);

  CHECK_EQ(data, std::vector<uint8_t>(2, 0));
}

}  // namespace
}  // namespace forklet
