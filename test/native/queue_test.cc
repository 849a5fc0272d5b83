#include "devices/virtio/queue.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "arch/x86_64/layout.h"
#include "virtio_driver.h"

#include "doctest.h"

namespace forklet {
namespace {

using testing::Buffer;
using testing::DriverQueue;

constexpr uint16_t kSize = 8;
constexpr uint16_t kMaxSize = 256;
constexpr uint64_t kRings = 0x10000;
constexpr uint64_t kData = 0x100000;

struct Fixture {
  GuestMemory memory = testing::MakeMemory();
  DriverQueue driver{memory, kRings, kSize};
  Virtqueue queue;
  DescriptorChain chain;

  bool Enable(bool event_idx = true) {
    queue.state() = driver.Setup();
    return queue.Enable(memory, event_idx, kMaxSize);
  }
  void Put(uint64_t address, const std::string& text) {
    REQUIRE(memory.Write({address}, {reinterpret_cast<const uint8_t*>(text.data()), text.size()}));
  }
  std::string Get(uint64_t address, size_t size) {
    std::string text(size, '\0');
    REQUIRE(memory.Read({address}, {reinterpret_cast<uint8_t*>(text.data()), size}));
    return text;
  }
};

TEST_CASE_FIXTURE(Fixture, "Virtqueue hands out a chain and returns it") {
  REQUIRE(Enable());
  Put(kData, "hello ");
  Put(kData + 0x100, "world");
  const uint16_t head = driver.Add({{kData, 6, false},
                                    {kData + 0x100, 5, false},
                                    {kData + 0x200, 3, true},
                                    {kData + 0x300, 100, true}});

  REQUIRE(queue.Pop(chain));
  CHECK_EQ(chain.head(), head);
  CHECK_EQ(chain.readable_bytes(), 11);
  CHECK_EQ(chain.writable_bytes(), 103);
  uint8_t read[32];
  CHECK_EQ(chain.Read(0, read), 11);
  CHECK_EQ(std::string(read, read + 11), "hello world");
  CHECK_EQ(chain.Read(4, {read, 4}), 4);
  CHECK_EQ(std::string(read, read + 4), "o wo");
  CHECK_EQ(chain.Read(11, read), 0);
  CHECK_EQ(chain.Read(1000, read), 0);
  const std::string reply = "12345";
  CHECK_EQ(chain.Write(1, {reinterpret_cast<const uint8_t*>(reply.data()), 5}), 5);
  CHECK_EQ(Get(kData + 0x201, 2), "12");
  CHECK_EQ(Get(kData + 0x300, 3), "345");
  CHECK_EQ(chain.Write(101, {reinterpret_cast<const uint8_t*>(reply.data()), 5}), 2);

  queue.PushUsed(chain.head(), 6);
  const auto used = driver.TakeUsed();
  REQUIRE(used);
  CHECK_EQ(used->id, head);
  CHECK_EQ(used->len, 6);
  CHECK_FALSE(queue.Pop(chain));
  CHECK_FALSE(queue.broken());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue keeps order while its indices wrap at 16 bits") {
  REQUIRE(Enable());
  for (uint32_t i = 0; i < 70'000; ++i) {
    const uint16_t head = driver.Add({{kData, 1, true}});
    REQUIRE(queue.Pop(chain));
    REQUIRE_EQ(chain.head(), head);
    queue.PushUsed(head, 1);
    const auto used = driver.TakeUsed();
    REQUIRE(used);
    REQUIRE_EQ(used->id, head);
  }
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue takes a full ring, and not one chain more") {
  REQUIRE(Enable());
  for (int i = 0; i < kSize; ++i) driver.Add({{kData, 1, true}});
  for (int i = 0; i < kSize; ++i) CHECK(queue.Pop(chain));
  CHECK_FALSE(queue.Pop(chain));
  CHECK_FALSE(queue.broken());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue accepts a buffer of no bytes and buffers at the end of RAM") {
  REQUIRE(Enable());
  driver.Add({{kData, 0, false}, {memory.bytes() - 16, 16, true}});
  REQUIRE(queue.Pop(chain));
  CHECK_EQ(chain.readable_bytes(), 0);
  CHECK_EQ(chain.writable_bytes(), 16);
}

// Each of these is one way for a driver to break the rules. None may be
// survived by anything but the queue's stop.
TEST_CASE_FIXTURE(Fixture, "Virtqueue breaks when the available index runs ahead of the ring") {
  REQUIRE(Enable());
  driver.SetAvailableIndex(kSize + 1);
  CHECK_FALSE(queue.Pop(chain));
  CHECK(queue.broken());
  // And stays broken when the driver takes it back.
  driver.SetAvailableIndex(1);
  CHECK_FALSE(queue.Pop(chain));
  CHECK_FALSE(queue.EnableNotify());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue breaks when the available index goes backwards") {
  REQUIRE(Enable());
  driver.Add({{kData, 1, true}});
  REQUIRE(queue.Pop(chain));
  driver.SetAvailableIndex(0);
  CHECK_FALSE(queue.Pop(chain));
  CHECK(queue.broken());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue breaks when a head is out of range") {
  REQUIRE(Enable());
  driver.WriteAvailable(0, kSize);
  driver.SetAvailableIndex(1);
  CHECK_FALSE(queue.Pop(chain));
  CHECK(queue.broken());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue breaks when a next index is out of range") {
  REQUIRE(Enable());
  driver.WriteDescriptor(0, {kData, 1, VRING_DESC_F_NEXT, kSize});
  driver.WriteAvailable(0, 0);
  driver.SetAvailableIndex(1);
  CHECK_FALSE(queue.Pop(chain));
  CHECK(queue.broken());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue breaks when descriptors form a loop") {
  REQUIRE(Enable());
  driver.WriteDescriptor(0, {kData, 1, VRING_DESC_F_NEXT, 1});
  driver.WriteDescriptor(1, {kData, 1, VRING_DESC_F_NEXT, 0});
  driver.WriteAvailable(0, 0);
  driver.SetAvailableIndex(1);
  CHECK_FALSE(queue.Pop(chain));
  CHECK(queue.broken());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue breaks when a readable buffer follows a writable one") {
  REQUIRE(Enable());
  driver.Add({{kData, 1, true}, {kData, 1, false}});
  CHECK_FALSE(queue.Pop(chain));
  CHECK(queue.broken());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue breaks when a descriptor is indirect") {
  REQUIRE(Enable());
  driver.WriteDescriptor(0, {kData, 16, VRING_DESC_F_INDIRECT, 0});
  driver.WriteAvailable(0, 0);
  driver.SetAvailableIndex(1);
  CHECK_FALSE(queue.Pop(chain));
  CHECK(queue.broken());
}

TEST_CASE("Virtqueue breaks when a buffer is not RAM") {
  const std::vector<Buffer> bad = {
      {4 << 20, 1, true},                        // Behind the end
      {(4 << 20) - 1, 2, true},                  // Across the end
      {layout::kDoorbell.value, 4, true},        // MMIO
      {~uint64_t{0}, 1, true},                   // Top of the address space
      {~uint64_t{0} - 1, 4, false},              // Wraps around
      {kData, 0xffffffff, false},                // Longer than RAM
      {layout::kHighRegion.value, 4096, false},  // RAM that this VM does not have
      {4 << 20, 0xffffffff, true},
  };
  for (const Buffer& buffer : bad) {
    Fixture fixture;
    REQUIRE(fixture.Enable());
    fixture.driver.Add({buffer});
    CHECK_FALSE(fixture.queue.Pop(fixture.chain));
    CHECK(fixture.queue.broken());
  }
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue survives buffers that are its own rings") {
  REQUIRE(Enable());
  const std::vector<uint8_t> noise(0x3000, 0xff);
  driver.Add({{kRings, 0x3000, true}});
  REQUIRE(queue.Pop(chain));
  CHECK_EQ(chain.Write(0, noise), noise.size());
  queue.PushUsed(chain.head(), 0x3000);
  CHECK_FALSE(queue.Pop(chain));
  CHECK(queue.broken());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue refuses a bad set-up") {
  const auto refused = [&](auto change) {
    queue.Reset();
    queue.state() = driver.Setup();
    change(queue.state());
    const bool accepted = queue.Enable(memory, true, kMaxSize);
    return !accepted && !queue.enabled() && !queue.Pop(chain);
  };
  CHECK(refused([](QueueState& state) { state.size = 0; }));
  CHECK(refused([](QueueState& state) { state.size = 3; }));
  CHECK(refused([](QueueState& state) { state.size = 512; }));
  CHECK(refused([](QueueState& state) { state.size = 0x8000; }));
  CHECK(refused([](QueueState& state) { state.descriptors.value += 8; }));
  CHECK(refused([](QueueState& state) { state.available.value += 1; }));
  CHECK(refused([](QueueState& state) { state.used.value += 2; }));
  CHECK(refused([](QueueState& state) { state.descriptors = {(4 << 20) - 16}; }));
  CHECK(refused([](QueueState& state) { state.available = {(4 << 20) - 20}; }));
  CHECK(refused([](QueueState& state) { state.used = {(4 << 20) - 68}; }));
  CHECK(refused([](QueueState& state) { state.used = {0xfffffffffffffffc}; }));
  CHECK(refused([](QueueState& state) { state.descriptors = {0xfffffffffffffff0}; }));
  CHECK_FALSE(refused([](QueueState&) {}));
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue accepts rings that end where RAM ends") {
  queue.state() = driver.Setup();
  queue.state().used = {(4 << 20) - (4 + 8 * kSize + 4)};
  queue.state().available = {(4 << 20) - 0x1000 - (4 + 2 * kSize + 2)};
  CHECK(queue.Enable(memory, true, kMaxSize));
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue goes on from saved indices") {
  queue.state() = driver.Setup();
  queue.state().next_available = 5;
  queue.state().next_used = 3;
  queue.state().signalled_used = 3;
  REQUIRE(queue.Enable(memory, true, kMaxSize));
  driver.WriteDescriptor(2, {kData, 1, VRING_DESC_F_WRITE, 0});
  driver.WriteAvailable(5, 2);
  driver.SetAvailableIndex(6);

  REQUIRE(queue.Pop(chain));
  CHECK_EQ(chain.head(), 2);
  queue.PushUsed(2, 1);
  CHECK_EQ(queue.state().next_used, 4);
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue interrupts only when the used index passes the event index") {
  REQUIRE(Enable());
  CHECK_FALSE(queue.TakeInterrupt());
  const auto use = [&](int count) {
    for (int i = 0; i < count; ++i) {
      driver.Add({{kData, 1, true}});
      REQUIRE(queue.Pop(chain));
      queue.PushUsed(chain.head(), 1);
    }
  };
  driver.SetUsedEvent(0);
  use(1);
  CHECK(queue.TakeInterrupt());
  CHECK_FALSE(queue.TakeInterrupt());
  use(2);
  CHECK_FALSE(queue.TakeInterrupt());
  driver.SetUsedEvent(4);
  use(1);
  CHECK_FALSE(queue.TakeInterrupt());
  use(3);
  CHECK(queue.TakeInterrupt());
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue without event index obeys the driver's flag") {
  REQUIRE(Enable(false));
  driver.SetAvailableFlags(VRING_AVAIL_F_NO_INTERRUPT);
  driver.Add({{kData, 1, true}});
  REQUIRE(queue.Pop(chain));
  queue.PushUsed(chain.head(), 1);
  CHECK_FALSE(queue.TakeInterrupt());
  driver.SetAvailableFlags(0);
  driver.Add({{kData, 1, true}});
  REQUIRE(queue.Pop(chain));
  queue.PushUsed(chain.head(), 1);
  CHECK(queue.TakeInterrupt());

  queue.DisableNotify();
  CHECK_EQ(driver.used_flags(), VRING_USED_F_NO_NOTIFY);
  CHECK_FALSE(queue.EnableNotify());
  CHECK_EQ(driver.used_flags(), 0);
}

TEST_CASE_FIXTURE(Fixture, "Virtqueue asks for notifications and sees chains that raced with it") {
  REQUIRE(Enable());
  CHECK_FALSE(queue.EnableNotify());
  driver.Add({{kData, 1, true}});
  CHECK(driver.WouldNotify(0));
  CHECK(queue.EnableNotify());

  REQUIRE(queue.Pop(chain));
  queue.DisableNotify();
  const uint16_t before = driver.available_index();
  for (int i = 0; i < kSize - 1; ++i) driver.Add({{kData, 1, true}});
  CHECK_FALSE(driver.WouldNotify(before));
}

// Either side may sleep only when the other is bound to wake it. With a fence
// missing on the device's side this test hangs sooner or later.
TEST_CASE_FIXTURE(Fixture, "Virtqueue loses no notification between two threads") {
  REQUIRE(Enable());
  constexpr uint32_t kChains = 200'000;
  std::atomic<uint32_t> notifications = 0;  // Stands for the eventfd
  std::atomic<bool> done = false;

  std::thread device([&] {
    uint32_t seen = 0;
    while (!done.load()) {
      const uint32_t now = notifications.load();
      if (now == seen) {
        std::this_thread::yield();  // On one processor the driver waits for this very thread
        continue;
      }
      seen = now;
      do {
        while (queue.Pop(chain)) queue.PushUsed(chain.head(), 0);
      } while (queue.EnableNotify());
    }
  });
  uint32_t used = 0;
  for (uint32_t added = 0; used < kChains;) {
    const uint16_t before = driver.available_index();
    uint16_t batch = 0;
    while (added < kChains && added - used < kSize && batch < 3) {
      driver.Add({{kData, 1, true}});
      ++added;
      ++batch;
    }
    if (batch > 0 && driver.WouldNotify(before)) notifications.fetch_add(1);
    if (batch == 0) std::this_thread::yield();
    while (driver.TakeUsed()) ++used;
  }
  done.store(true);
  device.join();
  CHECK_EQ(used, kChains);
  CHECK_FALSE(queue.broken());
}

}  // namespace
}  // namespace forklet
