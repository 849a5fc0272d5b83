// A machine for tests on the host, in the directory that FK_TEST_MACHINE names: without it there is
// no doorbell. Never part of a guest.
//
//   doorbell   a FIFO: the agent stands still until a byte comes
//   mailbox    one page
//   log        what the agent did to the machine, a line each
//   fail-seed, fail-clock
//              the errno with which that fails, where the file exists
//   etc, run   the machine's files
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "log.h"
#include "machine.h"

// Two seconds of a TSC of 1 GHz.
enum { TSC = 2000000000 };

static int doorbell_fd = -1;
static int log_fd = -1;
static struct fk_mailbox* mailbox;

const char* machine_root(void) {
  const char* directory = getenv("FK_TEST_MACHINE");
  return directory ? directory : "/nonexistent";
}

static int open_file(const char* name, int flags) {
  char path[PATH_MAX];
  snprintf(path, sizeof(path), "%s/%s", machine_root(), name);
  return open(path, flags | O_CLOEXEC, 0600);
}

static void note(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vdprintf(log_fd, format, arguments);
  va_end(arguments);
}

static int failure(const char* name) {
  const int fd = open_file(name, O_RDONLY);
  if (fd < 0) return 0;
  char text[16] = {0};
  const ssize_t count = read(fd, text, sizeof(text) - 1);
  close(fd);
  return count > 0 ? (int)strtol(text, NULL, 10) : 0;
}

int machine_open(void) {
  if (mailbox) return 0;
  const int fd = open_file("mailbox", O_RDWR);
  if (fd < 0) return ENODEV;
  void* page = mmap(NULL, FK_MAILBOX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  log_fd = open_file("log", O_WRONLY | O_CREAT | O_APPEND);
  // Both ways, so that it never ends.
  doorbell_fd = open_file("doorbell", O_RDWR);
  if (page == MAP_FAILED || log_fd < 0 || doorbell_fd < 0) return errno;
  mailbox = page;
  return 0;
}

void machine_park(void) {
  note("park\n");
  uint8_t byte;
  if (read(doorbell_fd, &byte, 1) != 1) log_error("doorbell", errno);
}

struct fk_mailbox* machine_mailbox(void) {
  return mailbox;
}

void machine_reseeded(uint64_t generation) { note("reseeded %" PRIx64 "\n", generation); }

int machine_seed(const uint8_t entropy[FK_ENTROPY_BYTES]) {
  note("seed %02x..%02x\n", entropy[0], entropy[FK_ENTROPY_BYTES - 1]);
  return failure("fail-seed");
}

void machine_run_first(void) { note("first\n"); }

void machine_run_last(void) { note("last\n"); }

uint64_t machine_tsc(void) { return TSC; }

int machine_set_clock(int64_t realtime_ns) {
  note("clock %" PRId64 "\n", realtime_ns);
  return failure("fail-clock");
}

int machine_set_hostname(const char* name, size_t bytes) {
  note("hostname %.*s\n", (int)bytes, name);
  return 0;
}
