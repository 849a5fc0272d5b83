#include "devices/doorbell.h"

#include <cstring>
#include <vector>

#include "doctest.h"

namespace forklet {
namespace {

struct Fixture {
  std::vector<DoorbellEvent> events;
  Doorbell doorbell{[this](DoorbellEvent event) { events.push_back(event); }};

  void Write(uint64_t offset, uint32_t value, size_t size = sizeof(uint32_t)) {
    uint8_t data[8] = {};
    std::memcpy(data, &value, sizeof value);
    doorbell.Write(offset, {data, size});
  }
};

TEST_CASE_FIXTURE(Fixture, "Doorbell reports each event that is defined") {
  for (uint32_t value : {1u, 2u, 3u, 4u}) Write(0, value);

  CHECK_EQ(events, std::vector{DoorbellEvent::kPowerOff, DoorbellEvent::kPanic,
                               DoorbellEvent::kRestart, DoorbellEvent::kHalt});
  CHECK_EQ(doorbell.ignored_accesses(), 0);
}

TEST_CASE_FIXTURE(Fixture, "Doorbell ignores and counts unknown values, offsets and widths") {
  Write(0, 0);
  Write(0, 5);
  Write(0, 0xffffffff);
  Write(4, 1);
  Write(0xffc, 1);
  Write(0, 1, 1);
  Write(0, 1, 8);

  CHECK(events.empty());
  CHECK_EQ(doorbell.ignored_accesses(), 7);
}

TEST_CASE_FIXTURE(Fixture, "Doorbell reads as zero") {
  uint8_t data[8];
  std::memset(data, 0xaa, sizeof data);

  doorbell.Read(0, data);

  CHECK_EQ(std::vector<uint8_t>(data, data + 8), std::vector<uint8_t>(8, 0));
}

}  // namespace
}  // namespace forklet
