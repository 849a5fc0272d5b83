// Lives through a freeze: looks at CLOCK_MONOTONIC again and again, and watches
// /run/forklet/generation by inotify. Answers each piece of input with a line
//
//   NOW BACKWARDS CHANGES REALTIME GENERATION
//
// the clock in nanoseconds, how often it has gone back, whether the file was changed since the
// start (0 or 1), CLOCK_REALTIME in nanoseconds, and what is in the file.
#include <stdint.h>

#include "start.h"

enum { O_RDONLY = 0, POLLIN = 1, IN_MODIFY = 2, PAUSE_MS = 20 };
enum { CLOCK_REALTIME = 0, CLOCK_MONOTONIC = 1 };

static const char kGeneration[] = "/run/forklet/generation";

struct timespec {
  long seconds, nanoseconds;
};

struct pollfd {
  int fd;
  short events, revents;
};

static long last, backwards;

static long read_clock(int clock) {
  struct timespec now;
  if (call3(SYS_CLOCK_GETTIME, clock, (long)&now, 0) < 0) finish(3);
  return now.seconds * 1000000000 + now.nanoseconds;
}

static void look_at_clock(void) {
  const long ns = read_clock(CLOCK_MONOTONIC);
  if (ns < last) backwards++;
  last = ns;
}

static void answer(int changed) {
  char generation[64] = {0};
  const long fd = call3(SYS_OPEN, (long)kGeneration, O_RDONLY, 0);
  if (fd < 0 || call3(SYS_READ, fd, (long)generation, sizeof(generation) - 1) <= 0) finish(4);
  call3(SYS_CLOSE, fd, 0, 0);
  say_number(last), say(" "), say_number(backwards), say(" ");
  say_number(changed), say(" "), say_number(read_clock(CLOCK_REALTIME)), say(" ");
  say(generation);
}

int guest_main(int argc, char** argv) {
  (void)argc, (void)argv;
  const long notify = call3(SYS_INOTIFY_INIT1, 0, 0, 0);
  if (notify < 0 || call3(SYS_INOTIFY_ADD_WATCH, notify, (long)kGeneration, IN_MODIFY) < 0) {
    return 5;
  }
  int changed = 0;
  for (;;) {
    look_at_clock();
    struct pollfd wait[] = {{.fd = 0, .events = POLLIN}, {.fd = (int)notify, .events = POLLIN}};
    call3(SYS_POLL, (long)wait, 2, PAUSE_MS);
    look_at_clock();
    char bytes[4096];
    if (wait[1].revents != 0 && call3(SYS_READ, notify, (long)bytes, sizeof(bytes)) > 0) {
      changed = 1;
    }
    if (wait[0].revents != 0) {
      if (call3(SYS_READ, 0, (long)bytes, sizeof(bytes)) <= 0) return 0;
      answer(changed);
    }
  }
}
