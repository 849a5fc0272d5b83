// Prints everything by which a machine could be mistaken for another, one `name value` a line:
//
//   at-random  the seed that the kernel gave this process, in hexadecimal
//   getrandom  16 bytes of getrandom(2)
//   urandom    16 bytes of /dev/urandom
//   uuid       /proc/sys/kernel/random/uuid
//   realtime   CLOCK_REALTIME in nanoseconds
#include <stdint.h>

#include "start.h"

enum { O_RDONLY = 0, AT_NULL = 0, AT_RANDOM = 25, CLOCK_REALTIME = 0, BYTES = 16 };

struct timespec {
  long seconds, nanoseconds;
};

static void say_bytes(const char* name, const uint8_t bytes[BYTES]) {
  char text[2 * BYTES + 1] = {0};
  for (int i = 0; i < BYTES; i++) {
    text[2 * i] = "0123456789abcdef"[bytes[i] >> 4];
    text[2 * i + 1] = "0123456789abcdef"[bytes[i] & 15];
  }
  say(name), say(" "), say(text), say("\n");
}

static const uint8_t* at_random(char** argv, int argc) {
  const long* at = (const long*)argv + argc + 1;
  while (*at != 0) at++;  // The environment
  for (at++; at[0] != AT_NULL; at += 2) {
    if (at[0] == AT_RANDOM) return (const uint8_t*)at[1];
  }
  finish(3);
}

static long read_file(const char* path, void* bytes, long size) {
  const long fd = call3(SYS_OPEN, (long)path, O_RDONLY, 0);
  return fd < 0 ? fd : call3(SYS_READ, fd, (long)bytes, size);
}

int guest_main(int argc, char** argv) {
  struct timespec now;
  if (call3(SYS_CLOCK_GETTIME, CLOCK_REALTIME, (long)&now, 0) < 0) return 4;
  uint8_t bytes[BYTES];
  char uuid[40] = {0};

  say_bytes("at-random", at_random(argv, argc));
  if (call3(SYS_GETRANDOM, (long)bytes, BYTES, 0) != BYTES) return 5;
  say_bytes("getrandom", bytes);
  if (read_file("/dev/urandom", bytes, BYTES) != BYTES) return 6;
  say_bytes("urandom", bytes);
  if (read_file("/proc/sys/kernel/random/uuid", uuid, sizeof(uuid) - 1) < 36) return 7;
  say("uuid "), say(uuid);
  say("realtime "), say_number(now.seconds * 1000000000 + now.nanoseconds), say("\n");
  return 0;
}
