#include "devices/virtio/mmio.h"

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "virtio_driver.h"

#include "doctest.h"

namespace forklet {
namespace {

using testing::DriverQueue;

constexpr uint32_t kAcknowledge = VIRTIO_CONFIG_S_ACKNOWLEDGE;
constexpr uint32_t kDriver = VIRTIO_CONFIG_S_DRIVER;
constexpr uint32_t kFeaturesOk = VIRTIO_CONFIG_S_FEATURES_OK;
constexpr uint32_t kDriverOk = VIRTIO_CONFIG_S_DRIVER_OK;
constexpr uint32_t kNeedsReset = VIRTIO_CONFIG_S_NEEDS_RESET;
constexpr uint32_t kStarted = kAcknowledge | kDriver | kFeaturesOk | kDriverOk;
constexpr uint64_t kVersion1 = uint64_t{1} << VIRTIO_F_VERSION_1;
constexpr uint64_t kEventIdx = uint64_t{1} << VIRTIO_RING_F_EVENT_IDX;
constexpr uint64_t kDeviceFeature = 1;

// Returns each chain at once, with its length.
class EchoDevice final : public VirtioDevice {
 public:
  uint32_t type() const override { return 42; }
  uint64_t features() const override { return kDeviceFeature; }
  std::span<const uint16_t> queue_sizes() const override { return kSizes; }
  void ReadConfig(uint64_t offset, std::span<uint8_t> data) const override {
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(offset + i);
  }
  Turn ProcessQueue(uint16_t index) override {
    turns.push_back(index);
    DescriptorChain chain;
    for (uint32_t i = 0; i < chains_per_turn; ++i) {
      if (!queues_[index].Pop(chain)) return Turn::kIdle;
      queues_[index].PushUsed(chain.head(), static_cast<uint32_t>(chain.writable_bytes()));
    }
    return Turn::kMoreWork;
  }
  void HandleReset() override { ++resets; }

  uint32_t chains_per_turn = 64;
  std::vector<uint16_t> turns;
  int resets = 0;

 private:
  static constexpr uint16_t kSizes[] = {16, 8};
};

struct Fixture {
  GuestMemory memory = testing::MakeMemory();
  testing::CountingLine line;
  EchoDevice device;
  std::unique_ptr<VirtioMmio> transport = VirtioMmio::Create(device, memory, line).value();
  testing::MmioDriver driver{*transport};
  DriverQueue first{memory, 0x10000, 16};
  DriverQueue second{memory, 0x20000, 8};

  void Start() {
    driver.Negotiate();
    driver.SetUpQueue(0, first.Setup());
    driver.SetUpQueue(1, second.Setup());
    driver.AddStatus(kDriverOk);
    REQUIRE_EQ(driver.status(), kStarted);
  }
};

TEST_CASE_FIXTURE(Fixture, "VirtioMmio identifies itself and its device") {
  CHECK_EQ(driver.Read(VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_VERSION), 2);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_DEVICE_ID), 42);
  CHECK_EQ(driver.status(), 0);
  CHECK_EQ(driver.DeviceFeatures(), kVersion1 | kEventIdx | kDeviceFeature);
  driver.Write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
  driver.Write(VIRTIO_MMIO_QUEUE_SEL, 1);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_QUEUE_NUM_MAX), 8);
  driver.Write(VIRTIO_MMIO_QUEUE_SEL, 2);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_SHM_LEN_LOW), 0xffffffff);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_CONFIG + 4), 0x07060504);
  CHECK_EQ(transport->ignored_accesses(), 0);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio starts its device after a complete start-up sequence") {
  Start();
  const uint16_t head = first.Add({{0x100000, 7, true}});
  driver.Write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
  CHECK_GT(transport->notifier(0).Drain(), 0);

  CHECK_EQ(transport->HandleNotify(0), Turn::kIdle);

  const auto used = first.TakeUsed();
  REQUIRE(used);
  CHECK_EQ(used->id, head);
  CHECK_EQ(used->len, 7);
  CHECK_EQ(line.Take(), 1);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
  driver.Write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
  CHECK_EQ(device.resets, 1);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio signals every notifier when the driver is ready") {
  Start();
  CHECK_GT(transport->notifier(0).Drain(), 0);
  CHECK_GT(transport->notifier(1).Drain(), 0);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio raises one interrupt for all that a turn returned") {
  Start();
  for (int i = 0; i < 10; ++i) first.Add({{0x100000, 1, true}});
  transport->HandleNotify(0);
  CHECK_EQ(line.Take(), 1);
  CHECK_EQ(first.TakeUsed()->len, 1);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio signals the notifier again when a turn leaves work") {
  Start();
  device.chains_per_turn = 4;
  for (int i = 0; i < 10; ++i) first.Add({{0x100000, 1, true}});
  transport->notifier(0).Drain();

  CHECK_EQ(transport->HandleNotify(0), Turn::kMoreWork);
  CHECK_EQ(transport->notifier(0).Drain(), 1);
  CHECK_EQ(transport->HandleNotify(0), Turn::kMoreWork);
  CHECK_EQ(transport->HandleNotify(0), Turn::kIdle);
  CHECK_EQ(first.available_index(), 10);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio refuses features without VERSION_1 or not on offer") {
  for (uint64_t features : {uint64_t{0}, kEventIdx, kVersion1 | 2, kVersion1 | uint64_t{1} << 63}) {
    driver.Negotiate(features);
    CHECK_EQ(driver.status(), kAcknowledge | kDriver);
    driver.AddStatus(kDriverOk);
    CHECK_EQ(driver.status(), kAcknowledge | kDriver);
  }
  driver.Negotiate(kVersion1);
  CHECK_EQ(driver.status(), kAcknowledge | kDriver | kFeaturesOk);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio fixes the features at FEATURES_OK") {
  driver.Negotiate(kVersion1);
  driver.SetFeatures(0);
  driver.SetUpQueue(0, first.Setup());
  driver.AddStatus(kDriverOk);
  // No event index was negotiated: the flag decides about interrupts.
  first.SetAvailableFlags(VRING_AVAIL_F_NO_INTERRUPT);
  first.Add({{0x100000, 1, true}});
  transport->HandleNotify(0);
  CHECK(first.TakeUsed());
  CHECK_EQ(line.Take(), 0);
  CHECK_GT(transport->ignored_accesses(), 0);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio takes status bits in their order only, and never back") {
  driver.SetStatus(kDriverOk);
  CHECK_EQ(driver.status(), 0);
  driver.SetStatus(kDriver);
  CHECK_EQ(driver.status(), 0);
  driver.SetStatus(kFeaturesOk);
  CHECK_EQ(driver.status(), 0);
  driver.SetStatus(kAcknowledge);
  driver.SetStatus(kAcknowledge | kDriverOk);
  CHECK_EQ(driver.status(), kAcknowledge);
  driver.SetStatus(kNeedsReset | 0xffffff00);
  CHECK_EQ(driver.status(), kAcknowledge);
  driver.SetStatus(kDriver);
  CHECK_EQ(driver.status(), kAcknowledge | kDriver);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio ignores queue registers out of their time") {
  driver.SetUpQueue(0, first.Setup());
  CHECK_EQ(driver.Read(VIRTIO_MMIO_QUEUE_READY), 0);
  driver.Negotiate();
  driver.SetUpQueue(2, first.Setup());
  CHECK_EQ(driver.Read(VIRTIO_MMIO_QUEUE_READY), 0);
  driver.SetUpQueue(0, first.Setup());
  CHECK_EQ(driver.Read(VIRTIO_MMIO_QUEUE_READY), 1);
  // A queue that is ready keeps its addresses, and after DRIVER_OK its state.
  driver.Write(VIRTIO_MMIO_QUEUE_DESC_HIGH, 0xffffffff);
  driver.AddStatus(kDriverOk);
  CHECK_EQ(driver.status(), kStarted);
  driver.Write(VIRTIO_MMIO_QUEUE_READY, 0);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_QUEUE_READY), 1);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio needs a reset when DRIVER_OK meets a bad queue") {
  const auto status_with = [&](auto change) {
    QueueState queue = first.Setup();
    change(queue);
    driver.Negotiate();
    driver.SetUpQueue(0, queue);
    driver.AddStatus(kDriverOk);
    return driver.status();
  };
  CHECK_EQ(status_with([](QueueState& queue) { queue.size = 0; }), kStarted | kNeedsReset);
  CHECK_EQ(status_with([](QueueState& queue) { queue.size = 12; }), kStarted | kNeedsReset);
  CHECK_EQ(status_with([](QueueState& queue) { queue.size = 32; }), kStarted | kNeedsReset);
  CHECK_EQ(status_with([](QueueState& queue) { queue.used.value = 1; }), kStarted | kNeedsReset);
  CHECK_EQ(status_with([](QueueState& queue) { queue.descriptors.value = uint64_t{1} << 40; }),
           kStarted | kNeedsReset);
  CHECK_EQ(line.Take(), 5);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
  CHECK_EQ(transport->needs_reset_count(), 5);
  // The device was never called, and a reset makes all well.
  transport->HandleNotify(0);
  CHECK(device.turns.empty());
  Start();
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio keeps a width above 16 bits from becoming a valid size") {
  driver.Negotiate();
  driver.Write(VIRTIO_MMIO_QUEUE_SEL, 0);
  driver.SetUpQueue(0, first.Setup());
  driver.Negotiate();
  driver.Write(VIRTIO_MMIO_QUEUE_NUM, 0x10010);
  driver.Write(VIRTIO_MMIO_QUEUE_READY, 1);
  driver.AddStatus(kDriverOk);
  CHECK_EQ(driver.status(), kStarted | kNeedsReset);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio stops the device when a ring breaks, until the next reset") {
  Start();
  second.Add({{0x100000, 1, true}});
  first.SetAvailableIndex(1000);
  transport->HandleNotify(0);
  CHECK_EQ(driver.status(), kStarted | kNeedsReset);
  CHECK_EQ(line.Take(), 1);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);

  transport->HandleNotify(1);
  CHECK_FALSE(second.TakeUsed());
  CHECK_EQ(transport->needs_reset_count(), 1);

  driver.SetStatus(0);
  CHECK_EQ(driver.status(), 0);
  CHECK_EQ(driver.Read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio stops the device when the driver has failed") {
  Start();
  driver.AddStatus(VIRTIO_CONFIG_S_FAILED);
  first.Add({{0x100000, 1, true}});
  transport->HandleNotify(0);
  CHECK_FALSE(first.TakeUsed());
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio tells the device of a reset before anything later") {
  Start();
  transport->HandleNotify(0);
  CHECK_EQ(device.resets, 1);
  Start();
  transport->notifier(0).Drain();
  CHECK_EQ(device.resets, 1);
  transport->HandleNotify(1);
  CHECK_EQ(device.resets, 2);
  CHECK_EQ(device.turns, std::vector<uint16_t>{0, 1});
  // And without a new start-up too: the reset itself signals.
  driver.SetStatus(0);
  CHECK_GT(transport->notifier(0).Drain(), 0);
  transport->HandleNotify(0);
  CHECK_EQ(device.resets, 3);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio ignores odd widths, odd offsets and unknown registers") {
  uint8_t data[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  for (size_t size : {1, 2, 3, 8}) {
    transport->Read(VIRTIO_MMIO_MAGIC_VALUE, {data, size});
    CHECK_EQ(data[0], 0);
    transport->Write(VIRTIO_MMIO_STATUS, {data, size});
  }
  transport->Read(VIRTIO_MMIO_MAGIC_VALUE + 1, {data, 4});
  CHECK_EQ(driver.Read(0x0c0), 0);
  driver.Write(0x0c0, 1);
  driver.Write(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
  driver.Write(VIRTIO_MMIO_QUEUE_NOTIFY, 0xffffffff);
  driver.Write(VIRTIO_MMIO_CONFIG, 1);
  transport->Write(0xffd, {data, 3});
  CHECK_EQ(driver.status(), 0);
  CHECK_EQ(transport->ignored_accesses(), 15);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio reads its configuration space at any width and offset") {
  uint8_t data[8] = {};
  transport->Read(VIRTIO_MMIO_CONFIG + 3, {data, 1});
  CHECK_EQ(data[0], 3);
  transport->Read(VIRTIO_MMIO_CONFIG + 1, data);
  CHECK_EQ(data[7], 8);
  transport->Read(0xfff, {data, 1});
  CHECK_EQ(data[0], 0xff);
}

TEST_CASE_FIXTURE(Fixture, "VirtioMmio survives a vCPU that resets while the device works") {
  std::atomic<bool> done = false;
  std::thread device_thread([&] {
    while (!done.load()) {
      transport->HandleNotify(0);
      transport->HandleNotify(1);
    }
  });
  for (int i = 0; i < 2'000; ++i) {
    DriverQueue queue(memory, 0x10000, 16);
    const std::vector<uint8_t> zero(0x3000, 0);
    REQUIRE(memory.Write({0x10000}, zero));
    driver.Negotiate();
    driver.SetUpQueue(0, queue.Setup());
    driver.AddStatus(kDriverOk);
    for (int j = 0; j < i % 7; ++j) queue.Add({{0x100000, 1, true}});
    driver.Write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.SetStatus(0);
  }
  done.store(true);
  device_thread.join();
  CHECK_EQ(driver.status(), 0);
}

}  // namespace
}  // namespace forklet
