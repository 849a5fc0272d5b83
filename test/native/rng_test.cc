#include "devices/virtio/rng.h"

#include <linux/virtio_ids.h>

#include <set>
#include <vector>

#include "devices/virtio/mmio.h"
#include "virtio_driver.h"

#include "doctest.h"

namespace forklet {
namespace {

constexpr uint64_t kData = 0x100000;

struct Fixture {
  GuestMemory memory = testing::MakeMemory();
  testing::CountingLine line;
  RngDevice device;
  std::unique_ptr<VirtioMmio> transport = VirtioMmio::Create(device, memory, line).value();
  testing::MmioDriver driver{*transport};
  testing::DriverQueue queue{memory, 0x10000, 8};

  Fixture() {
    driver.Negotiate();
    driver.SetUpQueue(0, queue.Setup());
    driver.AddStatus(VIRTIO_CONFIG_S_DRIVER_OK);
  }
  size_t CountNonZero(uint64_t address, size_t size) {
    std::vector<uint8_t> data(size);
    REQUIRE(memory.Read({address}, data));
    size_t count = 0;
    for (uint8_t byte : data) count += byte != 0;
    return count;
  }
};

TEST_CASE_FIXTURE(Fixture, "RngDevice fills writable buffers and says how far") {
  CHECK_EQ(device.type(), VIRTIO_ID_RNG);
  queue.Add({{kData, 100, true}, {kData + 0x1000, 28, true}});

  CHECK_EQ(transport->HandleNotify(0), Turn::kIdle);

  CHECK_EQ(queue.TakeUsed()->len, 128);
  CHECK_EQ(line.Take(), 1);
  // Of random bytes one in 256 is zero.
  CHECK_GT(CountNonZero(kData, 100), 50);
  CHECK_GT(CountNonZero(kData + 0x1000, 28), 10);
  CHECK_EQ(CountNonZero(kData + 100, 0x1000 - 100), 0);
  CHECK_EQ(CountNonZero(kData + 0x1000 + 28, 0x1000), 0);
}

TEST_CASE_FIXTURE(Fixture, "RngDevice gives each request other bytes") {
  std::set<std::vector<uint8_t>> seen;
  for (int i = 0; i < 8; ++i) {
    queue.Add({{kData, 16, true}});
    transport->HandleNotify(0);
    std::vector<uint8_t> data(16);
    REQUIRE(memory.Read({kData}, data));
    seen.insert(data);
  }
  CHECK_EQ(seen.size(), 8);
}

TEST_CASE_FIXTURE(Fixture, "RngDevice bounds what one request gets") {
  queue.Add({{kData, 0x200000, true}, {kData, 0x1000, true}});
  transport->HandleNotify(0);
  CHECK_EQ(queue.TakeUsed()->len, 4096);
  CHECK_EQ(CountNonZero(kData + 4096, 0x1000), 0);
}

TEST_CASE_FIXTURE(Fixture, "RngDevice writes nothing into readable or empty buffers") {
  queue.Add({{kData, 64, false}});
  queue.Add({{kData, 0, true}});
  transport->HandleNotify(0);
  CHECK_EQ(queue.TakeUsed()->len, 0);
  CHECK_EQ(queue.TakeUsed()->len, 0);
  CHECK_EQ(CountNonZero(kData, 64), 0);
}

TEST_CASE_FIXTURE(Fixture, "RngDevice asks for a notification when it has answered all") {
  queue.Add({{kData, 64, true}});
  transport->HandleNotify(0);
  CHECK_EQ(queue.available_event(), 1);
}

TEST_CASE_FIXTURE(Fixture, "RngDevice has an empty configuration space") {
  CHECK_EQ(driver.Read(VIRTIO_MMIO_CONFIG), 0);
}

}  // namespace
}  // namespace forklet
