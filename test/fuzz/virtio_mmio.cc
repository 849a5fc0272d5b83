// The registers of a virtio-mmio device, at any offset and width, with the
// entropy device behind them and memory that the fuzzer writes.
#include <memory>

#include "../native/virtio_driver.h"
#include "devices/virtio/mmio.h"
#include "devices/virtio/rng.h"
#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace forklet;
  constexpr uint64_t kMemoryBytes = 0x8000;
  static const GuestMemory memory = testing::MakeMemory(kMemoryBytes);
  std::memset(memory.regions().front().host, 0, kMemoryBytes);

  fuzzing::FuzzInput input(data, size);
  testing::CountingLine line;
  RngDevice device;
  const std::unique_ptr<VirtioMmio> transport = VirtioMmio::Create(device, memory, line).value();
  const testing::MmioDriver driver(*transport);
  testing::DriverQueue queue(memory, 0, 8);
  uint8_t bytes[8] = {};
  while (!input.empty()) {
    switch (input.Take<uint8_t>() % 7) {
      case 0: {
        const uint64_t offset = input.Take<uint16_t>() % VirtioMmio::kBytes;
        transport->Read(offset, {bytes, size_t{1} + input.Take<uint8_t>() % 8});
        break;
      }
      case 1: {
        const uint64_t offset = input.Take<uint16_t>() % VirtioMmio::kBytes;
        transport->Write(offset, input.TakeBytes(1 + input.Take<uint8_t>() % 8));
        break;
      }
      case 2:  // Whole words to the registers: what gets furthest
        driver.Write(input.Take<uint8_t>() & 0xfcu, input.Take<uint32_t>());
        break;
      case 3:
        (void)driver.Read(input.Take<uint8_t>() & 0xfcu);
        break;
      case 4: {
        const GuestAddress address{input.Take<uint16_t>()};
        (void)memory.Write(address, input.TakeBytes(input.Take<uint8_t>()));
        break;
      }
      case 5:
        transport->notifier(0).Drain();
        transport->HandleNotify(0);
        break;
      case 6:
        driver.Negotiate();
        queue = testing::DriverQueue(memory, 0, 8);
        driver.SetUpQueue(0, queue.Setup());
        driver.AddStatus(VIRTIO_CONFIG_S_DRIVER_OK);
        break;
    }
  }
  return 0;
}
