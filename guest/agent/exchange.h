/*
 * The exchange: RAM pages, reserved in the guest's memory map, through which the
 * host and a program that has parked itself hand each other input and answer.
 * Shared with native/; guest/park/forklet-park.h is the program's side, with the
 * same layout under names of its own (guest/park/ asserts that).
 *
 * Only one side writes at a time: the host while every vCPU stands still, the
 * program until it parks again. Any program of the guest can map it, so that the
 * host believes nothing in it. Little endian, as the processor is.
 */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define FK_EXCHANGE_VERSION 1u
#define FK_EXCHANGE_PAGES 15u
#define FK_EXCHANGE_DATA_OFFSET 256u
/* Most that an input or an answer can have, in bytes. */
#define FK_EXCHANGE_DATA_BYTES (FK_EXCHANGE_PAGES * 4096u - FK_EXCHANGE_DATA_OFFSET)

/* Why the host has let the program go. */
enum fk_exchange_state {
  FK_EXCHANGE_IDLE = 0,    /* for no reason: park again */
  FK_EXCHANGE_REQUEST = 1, /* there is input; parking again is the answer */
  FK_EXCHANGE_YIELD = 2,   /* the rest of the guest must run: wait for the doorbell's
                              interrupt in read(2), then park again */
};

struct fk_exchange {
  uint32_t version;      /* host: FK_EXCHANGE_VERSION */
  uint32_t state;        /* host: enum fk_exchange_state */
  uint32_t input_bytes;  /* host: of `data` */
  uint32_t output_bytes; /* program: of `data`, before it parks again */
  uint32_t error;        /* program: 0, or the request failed and the output says why */
  uint32_t zero;
  uint64_t sequence; /* host: number of the request */

  /* Host: as in the mailbox, fresh for each request. */
  uint64_t generation;
  uint8_t entropy[64];
  int64_t realtime_ns;
  uint64_t tsc;
  uint32_t tsc_khz;
  uint32_t zero2;

  uint8_t zero3[128];
  uint8_t data[FK_EXCHANGE_DATA_BYTES]; /* the input, and then the answer in its place */
};
static_assert(sizeof(struct fk_exchange) == FK_EXCHANGE_PAGES * 4096u, "whole pages");
static_assert(offsetof(struct fk_exchange, sequence) == 24, "shared layout");
static_assert(offsetof(struct fk_exchange, entropy) == 40, "shared layout");
static_assert(offsetof(struct fk_exchange, realtime_ns) == 104, "shared layout");
static_assert(offsetof(struct fk_exchange, zero3) == 128, "shared layout");
static_assert(offsetof(struct fk_exchange, data) == FK_EXCHANGE_DATA_OFFSET, "shared layout");
