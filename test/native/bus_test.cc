#include "devices/bus.h"

#include <vector>

#include "doctest.h"

namespace forklet {
namespace {

class RecordingDevice final : public BusDevice {
 public:
  explicit RecordingDevice(uint8_t fill) : fill_(fill) {}
  void Read(uint64_t offset, std::span<uint8_t> data) override {
    offsets.push_back(offset);
    for (uint8_t& byte : data) byte = fill_;
  }
  void Write(uint64_t offset, std::span<const uint8_t>) override { offsets.push_back(offset); }

  std::vector<uint64_t> offsets;

 private:
  uint8_t fill_;
};

TEST_CASE("Bus routes an access to the device whose range contains it") {
  RecordingDevice low(0x11), high(0x22);
  auto bus = Bus::Create({{0x2000, 0x1000, &high}, {0x1000, 0x1000, &low}});
  REQUIRE(bus.ok());
  uint8_t data[4] = {};

  bus.value()->Read(0x1ffc, data);
  CHECK_EQ(data[0], 0x11);
  bus.value()->Read(0x2000, data);
  CHECK_EQ(data[3], 0x22);
  bus.value()->Write(0x2010, data);

  CHECK_EQ(low.offsets, std::vector<uint64_t>{0xffc});
  CHECK_EQ(high.offsets, std::vector<uint64_t>{0, 0x10});
  CHECK_EQ(bus.value()->unclaimed_accesses(), 0);
}

TEST_CASE("Bus reads all ones and counts when no device claims the whole access") {
  RecordingDevice device(0x11);
  auto bus = Bus::Create({{0x1000, 0x1000, &device}});
  REQUIRE(bus.ok());
  uint8_t data[4] = {};

  for (uint64_t address :
       {uint64_t{0}, uint64_t{0xfff}, uint64_t{0x1ffd}, uint64_t{0x2000}, ~uint64_t{0}}) {
    data[0] = 0;
    bus.value()->Read(address, data);
    CHECK_EQ(data[0], 0xff);
    bus.value()->Write(address, data);
  }

  CHECK(device.offsets.empty());
  CHECK_EQ(bus.value()->unclaimed_accesses(), 10);
}

TEST_CASE("Bus without devices claims nothing") {
  auto bus = Bus::Create({});
  REQUIRE(bus.ok());
  uint8_t data[1] = {};
  bus.value()->Read(0, data);
  CHECK_EQ(data[0], 0xff);
}

TEST_CASE("Bus claims an access at the top of the address space") {
  RecordingDevice device(0x33);
  auto bus = Bus::Create({{~uint64_t{0} - 7, 7, &device}});
  REQUIRE(bus.ok());
  uint8_t data[4] = {};
  bus.value()->Read(~uint64_t{0} - 7, data);
  CHECK_EQ(data[0], 0x33);
  bus.value()->Read(~uint64_t{0} - 3, data);
  CHECK_EQ(data[0], 0xff);
}

TEST_CASE("Bus::Create fails when ranges overlap, are empty or wrap around") {
  RecordingDevice device(0);
  CHECK_FALSE(Bus::Create({{0x1000, 0x1001, &device}, {0x2000, 0x1000, &device}}).ok());
  CHECK_FALSE(Bus::Create({{0x1000, 8, &device}, {0x1000, 8, &device}}).ok());
  CHECK_FALSE(Bus::Create({{0x1000, 0, &device}}).ok());
  CHECK_FALSE(Bus::Create({{~uint64_t{0} - 7, 9, &device}}).ok());
}

}  // namespace
}  // namespace forklet
