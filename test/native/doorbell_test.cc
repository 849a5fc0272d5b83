#include "devices/doorbell.h"

#include <cstring>
#include <vector>

#include "doctest.h"

namespace forklet {
namespace {

struct Fixture : DoorbellHost {
  std::vector<DoorbellEvent> events;
  std::vector<ParkPlace> parks;
  std::vector<uint32_t> reseeded;
  int programs_gone = 0;
  Doorbell doorbell{*this};

  void OnDoorbellEvent(DoorbellEvent event) override { events.push_back(event); }
  void OnPark(ParkPlace place) override { parks.push_back(place); }
  void OnReseeded(uint32_t generation) override { reseeded.push_back(generation); }
  void OnProgramGone() override { ++programs_gone; }

  void Write(uint64_t offset, uint32_t value, size_t size = sizeof(uint32_t)) {
    uint8_t data[8] = {};
    std::memcpy(data, &value, sizeof value);
    doorbell.Write(offset, {data, size});
  }
  uint64_t Read(uint64_t offset, size_t size = sizeof(uint32_t)) {
    uint64_t value = ~uint64_t{0};
    doorbell.Read(offset, {reinterpret_cast<uint8_t*>(&value), size});
    return size == sizeof value ? value : value & ((uint64_t{1} << 8 * size) - 1);
  }
};

TEST_CASE_FIXTURE(Fixture, "Doorbell reports each event that is defined") {
  for (uint32_t value : {1u, 2u, 3u, 4u}) Write(0, value);

  CHECK_EQ(events, std::vector{DoorbellEvent::kPowerOff, DoorbellEvent::kPanic,
                               DoorbellEvent::kRestart, DoorbellEvent::kHalt});
  CHECK_EQ(doorbell.ignored_accesses(), 0);
}

TEST_CASE_FIXTURE(Fixture, "Doorbell reports who parks, and always answers the same") {
  CHECK_EQ(Read(0x08), 1);
  CHECK_EQ(Read(0x10), 1);
  CHECK_EQ(Read(0x08), 1);

  CHECK_EQ(parks, std::vector{ParkPlace::kAgent, ParkPlace::kProgram, ParkPlace::kAgent});
}

TEST_CASE_FIXTURE(Fixture, "Doorbell hands on generations and the end of programs") {
  Write(0x18, 0xdeadbeef);
  Write(0x1c, 1);

  CHECK_EQ(reseeded, std::vector<uint32_t>{0xdeadbeef});
  CHECK_EQ(programs_gone, 1);
}

TEST_CASE_FIXTURE(Fixture, "Doorbell ignores and counts unknown values, offsets and widths") {
  Write(0, 0);
  Write(0, 5);
  Write(0, 0xffffffff);
  Write(4, 1);
  Write(0x08, 1);
  Write(0xffc, 1);
  Write(0, 1, 1);
  Write(0x18, 1, 2);
  Write(0, 1, 8);

  CHECK(events.empty());
  CHECK(reseeded.empty());
  CHECK_EQ(doorbell.ignored_accesses(), 9);
}

TEST_CASE_FIXTURE(Fixture, "Doorbell reads as zero where there is no park") {
  CHECK_EQ(Read(0x00), 0);
  CHECK_EQ(Read(0x08, 8), 0);
  CHECK_EQ(Read(0x10, 1), 0);
  CHECK_EQ(Read(0x14), 0);

  CHECK(parks.empty());
  CHECK_EQ(doorbell.ignored_accesses(), 4);
}

}  // namespace
}  // namespace forklet
