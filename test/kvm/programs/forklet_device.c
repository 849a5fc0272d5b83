// Tries what /dev/forklet offers, and says what came of it: `what: result`, a negative result being
// an errno.
//
//   forklet_device map [user]    maps every page in every way, as root or as an ordinary user
//   forklet_device mark NUMBER   writes a number to the last word of the exchange
//   forklet_device show          shows that number
//   forklet_device wait          waits for the doorbell's interrupt
#include <stdint.h>

#include "start.h"

enum { O_RDWR = 2, O_NONBLOCK = 04000 };
enum { PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4, MAP_SHARED = 1, MAP_PRIVATE = 2 };
enum { PAGE = 4096, EXCHANGE_PAGES = 15, NOBODY = 65534 };
enum { DOORBELL = 0, MAILBOX = 1, EXCHANGE = 2, NOTHING = 17 };

struct pollfd {
  int fd;
  short events, revents;
};

static long device;

static int is_error(long result) { return result < 0 && result > -4096; }

static long map(long first_page, long pages, long protection, long flags) {
  return call6(SYS_MMAP, 0, pages * PAGE, protection, flags, device, first_page * PAGE);
}

static void report(const char* what, long result) {
  say(what);
  say(": ");
  say_number(is_error(result) ? result : 0);
  say("\n");
}

static void try_maps(void) {
  const long all = PROT_READ | PROT_WRITE;
  report("doorbell, reading", map(DOORBELL, 1, PROT_READ, MAP_SHARED));
  report("doorbell, writing", map(DOORBELL, 1, all, MAP_SHARED));
  report("mailbox, reading", map(MAILBOX, 1, PROT_READ, MAP_SHARED));
  report("mailbox, writing", map(MAILBOX, 1, all, MAP_SHARED));
  report("exchange, reading", map(EXCHANGE, EXCHANGE_PAGES, PROT_READ, MAP_SHARED));
  report("exchange, writing", map(EXCHANGE, EXCHANGE_PAGES, all, MAP_SHARED));
  report("exchange, executing", map(EXCHANGE, EXCHANGE_PAGES, PROT_READ | PROT_EXEC, MAP_SHARED));
  report("exchange, private", map(EXCHANGE, EXCHANGE_PAGES, all, MAP_PRIVATE));
  report("part of the exchange", map(EXCHANGE, EXCHANGE_PAGES - 1, all, MAP_SHARED));
  report("behind the exchange", map(EXCHANGE + 1, EXCHANGE_PAGES, all, MAP_SHARED));
  report("doorbell and mailbox", map(DOORBELL, 2, PROT_READ, MAP_SHARED));
  report("nothing", map(NOTHING, 1, PROT_READ, MAP_SHARED));
}

static void try_read(void) {
  uint64_t count;
  struct pollfd wait = {.fd = (int)device, .events = 1};
  report("half a count", call3(SYS_READ, device, (long)&count, 4));
  report("no call", call3(SYS_READ, device, (long)&count, sizeof(count)));
  say("polled: ");
  say_number(call3(SYS_POLL, (long)&wait, 1, 0));
  say("\n");
}

static volatile uint64_t* last_word(void) {
  const long at = map(EXCHANGE, EXCHANGE_PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
  if (is_error(at)) finish(3);
  return (volatile uint64_t*)(at + EXCHANGE_PAGES * PAGE) - 1;
}

static void wait_for_call(void) {
  uint64_t count = 0;
  say("waiting\n");
  const long got = call3(SYS_READ, device, (long)&count, sizeof(count));
  say_number(got == sizeof(count) ? (long)count : got);
}

int guest_main(int argc, char** argv) {
  if (argc < 2) return 2;
  const int mapping = same(argv[1], "map");
  if (argc > 2 && same(argv[2], "user") && call3(SYS_SETRESUID, NOBODY, NOBODY, NOBODY) < 0) {
    return 4;
  }
  device = call3(SYS_OPEN, (long)"/dev/forklet", mapping ? O_RDWR | O_NONBLOCK : O_RDWR, 0);
  if (device < 0) return 5;
  if (mapping) {
    try_maps();
    try_read();
  } else if (same(argv[1], "mark") && argc > 2) {
    *last_word() = parse_number(argv[2]);
  } else if (same(argv[1], "show")) {
    say_number((long)*last_word());
  } else if (same(argv[1], "wait")) {
    wait_for_call();
  } else {
    return 2;
  }
  return 0;
}
