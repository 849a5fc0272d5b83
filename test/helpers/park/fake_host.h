// A host for parked programs that run on this machine, as tests do: included before
// guest/park/forklet-park.h. The device is a file of 17 pages; the program says on descriptor 4
// that it stands still, and hears on descriptor 3 that it may go on. It exits when the host is gone.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define FORKLET_DEVICE getenv("FORKLET_TEST_DEVICE")
#define FORKLET_LOAD(doorbell_register) fake_load(doorbell_register)

static inline uint32_t fake_load(volatile uint32_t* doorbell_register) {
  const uint8_t parked = (uint8_t)((uintptr_t)doorbell_register & 0xfff);
  uint8_t value;
  if (write(4, &parked, 1) != 1 || read(3, &value, 1) != 1) exit(0);
  return value;
}
