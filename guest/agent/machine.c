#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "doorbell.h"
#include "log.h"

enum { PAGE = 4096, CPU_MASK_LONGS = 16 };

// <linux/random.h>, which musl's headers do not reach.
struct random_pool_info {
  int entropy_count; /* bits */
  int buf_size;      /* bytes */
  uint8_t bytes[FK_ENTROPY_BYTES];
};
#define RNDADDENTROPY _IOW('R', 0x03, int[2])
#define RNDRESEEDCRNG _IO('R', 0x07)

static volatile uint8_t* doorbell;
static struct fk_mailbox* mailbox;
static int random_fd = -1;

// The CPUs that the agent ran on before machine_run_first().
static unsigned long all_cpus[CPU_MASK_LONGS];
static bool pinned;

const char* machine_root(void) { return ""; }

// One page of `fd`, or NULL.
static void* map(int fd, off_t offset) {
  void* page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
  return page == MAP_FAILED ? NULL : page;
}

static int map_both(int fd, off_t doorbell_offset, off_t mailbox_offset) {
  doorbell = map(fd, doorbell_offset);
  if (doorbell) mailbox = map(fd, mailbox_offset);
  const int error = mailbox ? 0 : errno;
  close(fd);
  return error;
}

// The address that the host gave on the kernel's command line, or 0.
static off_t address_of(const char* command_line, const char* option) {
  const char* at = strstr(command_line, option);
  return at ? (off_t)strtoull(at + strlen(option), NULL, 0) : 0;
}

// A kernel that is not ours has no /dev/forklet.
static int map_memory(void) {
  char line[4096];
  int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  const ssize_t count = read(fd, line, sizeof(line) - 1);
  close(fd);
  if (count < 0) return errno;
  line[count] = 0;
  const off_t doorbell_address = address_of(line, "forklet.doorbell=");
  const off_t mailbox_address = address_of(line, "forklet.mailbox=");
  if (doorbell_address == 0 || mailbox_address == 0) return ENODEV;
  // Uncached, as the doorbell needs it.
  fd = open("/dev/mem", O_RDWR | O_SYNC | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT ? ENODEV : errno;
  return map_both(fd, doorbell_address, mailbox_address);
}

int machine_open(void) {
  if (random_fd < 0) random_fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
  if (random_fd < 0) return errno;
  if (mailbox) return 0;
  const int fd = open("/dev/forklet", O_RDWR | O_CLOEXEC);
  if (fd >= 0) return map_both(fd, FK_PAGE_DOORBELL * PAGE, FK_PAGE_MAILBOX * PAGE);
  return errno == ENOENT ? map_memory() : errno;
}

static volatile uint32_t* doorbell_register(enum fk_doorbell offset) {
  return (volatile uint32_t*)(doorbell + offset);
}

void machine_park(void) {
  (void)*doorbell_register(FK_DOORBELL_PARK_AGENT);
  // What is read from the mailbox before is another machine's.
  __asm__ volatile("" ::: "memory");
}

struct fk_mailbox* machine_mailbox(void) {
  return mailbox;
}

void machine_reseeded(uint64_t generation) {
  *doorbell_register(FK_DOORBELL_RESEEDED) = (uint32_t)generation;
}

int machine_seed(const uint8_t entropy[FK_ENTROPY_BYTES]) {
  struct random_pool_info pool = {.entropy_count = 8 * FK_ENTROPY_BYTES,
                                  .buf_size = FK_ENTROPY_BYTES};
  memcpy(pool.bytes, entropy, FK_ENTROPY_BYTES);
  int error = 0;
  if (ioctl(random_fd, RNDADDENTROPY, &pool) < 0 || ioctl(random_fd, RNDRESEEDCRNG) < 0) {
    error = errno;
  }
  explicit_bzero(&pool, sizeof(pool));
  return error;
}

// musl's wrapper of sched_setscheduler does nothing.
static void set_policy(int policy, int priority) {
  const struct sched_param parameters = {.sched_priority = priority};
  if (syscall(SYS_sched_setscheduler, 0, policy, &parameters) < 0) {
    log_error("scheduling policy", errno);
  }
}

// On the first CPU, which is the one that the host lets go first.
static void pin(void) {
  unsigned long first[CPU_MASK_LONGS] = {1};
  const long bytes = syscall(SYS_sched_getaffinity, 0, sizeof(all_cpus), all_cpus);
  if (bytes < 0 || memcmp(first, all_cpus, (size_t)bytes) == 0) return;
  pinned = syscall(SYS_sched_setaffinity, 0, (size_t)bytes, first) == 0;
  if (!pinned) log_error("affinity", errno);
}

void machine_run_first(void) {
  pin();
  set_policy(SCHED_FIFO, 99);
}

// A batch task does not preempt whom it is woken by. On one CPU a short command so runs to its end,
// and the agent then finds its output, its exit and the closed pipes together: one wake-up, one
// packet. The price is that a busy CPU is shared at ticks only.
void machine_run_last(void) {
  set_policy(SCHED_BATCH, 0);
  if (!pinned) return;
  pinned = false;
  if (syscall(SYS_sched_setaffinity, 0, sizeof(all_cpus), all_cpus) < 0) {
    log_error("affinity", errno);
  }
}

uint64_t machine_tsc(void) { return __rdtsc(); }

int machine_set_clock(int64_t realtime_ns) {
  const struct timespec time = {realtime_ns / 1000000000, realtime_ns % 1000000000};
  return clock_settime(CLOCK_REALTIME, &time) < 0 ? errno : 0;
}

int machine_set_hostname(const char* name, size_t bytes) {
  return sethostname(name, bytes) < 0 ? errno : 0;
}
