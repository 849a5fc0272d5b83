/*
 * The mailbox: one page of RAM, reserved in the guest's memory map, in which the
 * host tells the agent which machine it runs in. Shared with native/.
 *
 * The host writes it while every vCPU stands still, and the agent reads it when
 * it has been let go. Little endian, as the processor is.
 */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define FK_MAILBOX_VERSION 1u
#define FK_MAILBOX_BYTES 4096u
#define FK_HOSTNAME_BYTES 64u
#define FK_ENTROPY_BYTES 64u

/* Flags: park again at once, and do nothing else before. */
#define FK_MAILBOX_PARK_AGAIN (1u << 0)

struct fk_mailbox {
  uint32_t version; /* FK_MAILBOX_VERSION; 0 until the host has written it once */
  uint32_t flags;   /* FK_MAILBOX_* */

  /* Random, and different in every machine that came from a snapshot; 0 in one
     that was booted. Where it is not what the agent knows, this is another
     machine than the one that parked, and must be made unique. */
  uint64_t generation;
  /* Fresh for each generation. The agent wipes it once the kernel has it. */
  uint8_t entropy[FK_ENTROPY_BYTES];

  /* CLOCK_REALTIME of the host when the guest's TSC had the value `tsc`, in
     `ns`; and the guest's TSC rate in `kHz`. */
  int64_t realtime_ns;
  uint64_t tsc;
  uint32_t tsc_khz;

  uint32_t hostname_bytes; /* 0: keep the name */
  char hostname[FK_HOSTNAME_BYTES];
  uint8_t id[16]; /* for /etc/machine-id; all zero: keep it */

  uint8_t zero[FK_MAILBOX_BYTES - 184];
};
static_assert(sizeof(struct fk_mailbox) == FK_MAILBOX_BYTES, "one page");
static_assert(offsetof(struct fk_mailbox, generation) == 8, "shared layout");
static_assert(offsetof(struct fk_mailbox, entropy) == 16, "shared layout");
static_assert(offsetof(struct fk_mailbox, realtime_ns) == 80, "shared layout");
static_assert(offsetof(struct fk_mailbox, tsc_khz) == 96, "shared layout");
static_assert(offsetof(struct fk_mailbox, hostname) == 104, "shared layout");
static_assert(offsetof(struct fk_mailbox, id) == 168, "shared layout");
static_assert(offsetof(struct fk_mailbox, zero) == 184, "shared layout");
