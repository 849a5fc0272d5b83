// A split virtqueue whose every byte is the fuzzer's, changed between the
// device's steps as a guest would change it.
#include <array>
#include <vector>

#include "../native/virtio_driver.h"
#include "devices/virtio/queue.h"
#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace forklet;
  constexpr uint64_t kMemoryBytes = 0x8000;
  constexpr uint16_t kMaxSize = 64;
  static const GuestMemory memory = testing::MakeMemory(kMemoryBytes);
  std::memset(memory.regions().front().host, 0, kMemoryBytes);

  fuzzing::FuzzInput input(data, size);
  Virtqueue queue;
  DescriptorChain chain;
  std::vector<uint8_t> scratch(4096);
  // By default a set-up that is right; the fuzzer may change any part of it.
  queue.state().size = 16;
  queue.state().available = {0x1000};
  queue.state().used = {0x2000};
  while (!input.empty()) {
    switch (input.Take<uint8_t>() % 9) {
      case 0: {
        QueueState& state = queue.state();
        if (queue.enabled()) break;
        state.size = input.Take<uint16_t>();
        state.descriptors.value = input.Take<uint64_t>();
        state.available.value = input.Take<uint64_t>();
        state.used.value = input.Take<uint64_t>();
        state.next_available = input.Take<uint16_t>();
        state.next_used = input.Take<uint16_t>();
        break;
      }
      case 1:
        if (!queue.enabled()) (void)queue.Enable(memory, input.Take<uint8_t>() & 1, kMaxSize);
        break;
      case 2: {
        const GuestAddress address{input.Take<uint16_t>()};
        (void)memory.Write(address, input.TakeBytes(input.Take<uint8_t>()));
        break;
      }
      case 3: {
        const vring_desc descriptor = input.Take<vring_desc>();
        (void)memory.WriteObject({16u * (input.Take<uint8_t>() % kMaxSize)}, descriptor);
        break;
      }
      case 4: {
        (void)memory.WriteObject({0x1004u + 2u * (input.Take<uint8_t>() % kMaxSize)},
                                 input.Take<uint16_t>());
        uint16_t index = 0;
        (void)memory.ReadObject({0x1002}, index);
        (void)memory.WriteObject({0x1002}, static_cast<uint16_t>(index + 1));
        break;
      }
      case 5:
        if (!queue.Pop(chain)) break;
        CHECK(chain.head() < queue.state().size);
        CHECK(chain.Read(input.Take<uint16_t>(), scratch) <= chain.readable_bytes());
        CHECK(chain.Write(input.Take<uint16_t>(), scratch) <= chain.writable_bytes());
        queue.PushUsed(chain.head(), input.Take<uint32_t>());
        break;
      case 6:
        (void)queue.TakeInterrupt();
        break;
      case 7:
        (void)queue.EnableNotify();
        queue.DisableNotify();
        break;
      case 8:
        queue.Reset();
        break;
    }
  }
  return 0;
}
