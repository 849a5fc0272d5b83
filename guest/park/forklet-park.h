/*
 * forklet-park.h: lets a program of the guest choose its own fork point.
 *
 * A program warms up, and then parks: it stands still, in user mode, inside a
 * read of the doorbell. There the host takes a snapshot, and every fork of it
 * goes on in the program at that very place, with the input of a request, and
 * without an instruction of the kernel. Parking again is the answer.
 *
 *     struct forklet forklet;
 *     if (forklet_open(&forklet) != 0) return 1;
 *     for (;;) {
 *       long bytes = forklet_park(&forklet);
 *       if (bytes < 0) return 1;
 *       ... read forklet_data(&forklet)[0, bytes), write the answer in its place ...
 *       forklet_answer(&forklet, answer_bytes);
 *     }
 *
 * The program owns its process: a request is not interrupted by anything but
 * the kernel's scheduler, and forks share all memory that none of them writes.
 * So do before the first park what all requests need, and write to few pages
 * after it. Between two parks the functions here make no system call and touch
 * the exchange's pages only.
 *
 * Needs our kernel's /dev/forklet, and no privilege. C99 with GNU extensions,
 * or C++; nothing to link. Part of forklet, Apache-2.0.
 */
#ifndef FORKLET_PARK_H
#define FORKLET_PARK_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where a program is not in a guest, as in a test, both can be defined before. */
#ifndef FORKLET_DEVICE
#define FORKLET_DEVICE "/dev/forklet"
#endif
#ifndef FORKLET_LOAD
#define FORKLET_LOAD(doorbell_register) (*(doorbell_register))
#endif

#define FORKLET_EXCHANGE_PAGES 15
/* Most that a request or an answer can have, in bytes. */
#define FORKLET_DATA_BYTES (FORKLET_EXCHANGE_PAGES * 4096 - 256)

/* The pages that host and program share. The host writes while the program
   stands still, the program writes `output_bytes`, `error` and `data`. */
struct forklet_exchange {
  uint32_t version;
  uint32_t state;
  uint32_t input_bytes;
  uint32_t output_bytes;
  uint32_t error;
  uint32_t zero;
  uint64_t sequence; /* number of the request */

  /* What makes this machine another than its siblings, fresh for each request. */
  uint64_t generation; /* random; see forklet_is_new() */
  uint8_t entropy[64]; /* for random number generators; not for keeping */
  int64_t realtime_ns; /* the time when `tsc` held; see forklet_realtime_ns() */
  uint64_t tsc;
  uint32_t tsc_khz;
  uint32_t zero2;

  uint8_t zero3[128];
  uint8_t data[FORKLET_DATA_BYTES];
};

struct forklet {
  struct forklet_exchange* exchange;
  volatile uint32_t* park_register;
  uint64_t generation;
  int fd;
};

/* Of a call that has failed: negative, whatever it says. */
static inline int forklet_error_(void) { return errno > 0 ? -errno : -EIO; }

/* Opens the device. Returns 0 or a negative errno: -ENOENT or -ENODEV where
   there is none. */
static inline int forklet_open(struct forklet* forklet) {
  forklet->generation = 0;
  forklet->fd = open(FORKLET_DEVICE, O_RDWR | O_CLOEXEC);
  if (forklet->fd < 0) return forklet_error_();
  void* doorbell = mmap(NULL, 4096, PROT_READ, MAP_SHARED, forklet->fd, 0);
  void* exchange = MAP_FAILED;
  if (doorbell != MAP_FAILED) {
    exchange = mmap(NULL, FORKLET_EXCHANGE_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                    forklet->fd, 2 * 4096);
  }
  if (exchange == MAP_FAILED) {
    const int error = forklet_error_();
    if (doorbell != MAP_FAILED) munmap(doorbell, 4096);
    close(forklet->fd);
    forklet->fd = -1;
    return error;
  }
  forklet->exchange = (struct forklet_exchange*)exchange;
  forklet->park_register = (volatile uint32_t*)doorbell + 0x10 / sizeof(uint32_t);
  return 0;
}

static inline void forklet_close(struct forklet* forklet) {
  munmap((void*)(forklet->park_register - 0x10 / sizeof(uint32_t)), 4096);
  munmap(forklet->exchange, FORKLET_EXCHANGE_PAGES * 4096);
  close(forklet->fd);
}

/* Stands still until there is a request, which is answered by calling this
   again. Returns the bytes of its input, which is in forklet_data(); or
   -ENOTSUP when there is no host that could hold this program, or one of
   another version.

   Where the host wants the rest of the guest to run meanwhile, this waits in
   read(2) until it is called back. */
static inline long forklet_park(struct forklet* forklet) {
  volatile struct forklet_exchange* exchange = forklet->exchange;
  for (;;) {
    /* Without a compiler's help the answer would be written before this load,
       and the next request read after it; both are the same memory. */
    __asm__ volatile("" ::: "memory");
    const uint32_t held = FORKLET_LOAD(forklet->park_register);
    __asm__ volatile("" ::: "memory");
    if (held != 1) return -ENOTSUP;
    const uint32_t state = exchange->state;
    if (state == 1) { /* a request */
      const uint32_t bytes = exchange->input_bytes;
      if (exchange->version != 1) return -ENOTSUP;
      exchange->output_bytes = 0;
      exchange->error = 0;
      return bytes <= FORKLET_DATA_BYTES ? (long)bytes : FORKLET_DATA_BYTES;
    }
    if (state == 2) { /* yield */
      uint64_t calls;
      const ssize_t got = read(forklet->fd, &calls, sizeof(calls));
      /* However it ended (a signal, say): the host decides what comes next. */
      (void)got;
    }
  }
}

/* FORKLET_DATA_BYTES bytes: the input of the request, and then its answer. */
static inline uint8_t* forklet_data(struct forklet* forklet) { return forklet->exchange->data; }

/* The answer is the first `bytes` of forklet_data(). It leaves with the next
   forklet_park(). */
static inline void forklet_answer(struct forklet* forklet, size_t bytes) {
  forklet->exchange->output_bytes =
      (uint32_t)(bytes <= FORKLET_DATA_BYTES ? bytes : FORKLET_DATA_BYTES);
  forklet->exchange->error = 0;
}

/* The request has failed, and `message` says why. */
static inline void forklet_fail(struct forklet* forklet, const char* message, size_t bytes) {
  if (bytes > FORKLET_DATA_BYTES) bytes = FORKLET_DATA_BYTES;
  memmove(forklet->exchange->data, message, bytes);
  forklet->exchange->output_bytes = (uint32_t)bytes;
  forklet->exchange->error = 1;
}

/* True in the first request of each fork: seed random number generators from
   exchange->entropy, and forget what must not be had twice. */
static inline int forklet_is_new(struct forklet* forklet) {
  const uint64_t generation = forklet->exchange->generation;
  const int is_new = generation != forklet->generation;
  if (is_new) forklet->generation = generation;
  return is_new;
}

/* CLOCK_REALTIME as the host has it, in nanoseconds, also where the guest's
   kernel has not been told yet. For use inside a request. */
static inline int64_t forklet_realtime_ns(const struct forklet* forklet) {
  const struct forklet_exchange* exchange = forklet->exchange;
  const uint64_t now = __builtin_ia32_rdtsc();
  const uint64_t khz = exchange->tsc_khz;
  if (khz == 0 || now <= exchange->tsc) return exchange->realtime_ns;
  const uint64_t ticks = now - exchange->tsc;
  return exchange->realtime_ns + (int64_t)(ticks / khz * 1000000 + ticks % khz * 1000000 / khz);
}

#ifdef __cplusplus
}
#endif

#endif
