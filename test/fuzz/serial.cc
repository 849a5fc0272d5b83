// The serial console's registers at any offset and width, with input from the
// host in between.
#include "devices/serial.h"
#include "../native/virtio_driver.h"
#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace forklet;
  fuzzing::FuzzInput input(data, size);
  testing::CountingLine line;
  size_t sent = 0;
  size_t written = 0;
  Serial serial(line, [&](uint8_t) { ++sent; });
  uint8_t bytes[8] = {};
  while (!input.empty()) {
    const uint8_t step = input.Take<uint8_t>();
    const uint64_t offset = (step >> 2) % Serial::kPorts;
    switch (step % 4) {
      case 0:
        serial.Read(offset, {bytes, size_t{1} + input.Take<uint8_t>() % 8});
        break;
      case 1:
      case 2: {
        const auto value = input.TakeBytes(step % 4 == 1 ? 1 : 8);
        serial.Write(offset, value);
        written += value.size();
        break;
      }
      case 3: {
        const auto text = input.TakeBytes(input.Take<uint16_t>());
        CHECK(serial.Input(text) <= text.size());
        break;
      }
    }
  }
  CHECK(sent <= written);
  return 0;
}
