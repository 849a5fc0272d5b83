/* Bytes of the host that wait for their turn. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* All zero: empty. */
struct backlog {
  uint8_t* bytes; /* what waits is [begin, end) */
  uint32_t begin, end, size;
};

static inline size_t backlog_length(const struct backlog* backlog) {
  return backlog->end - backlog->begin;
}

static inline const uint8_t* backlog_first(const struct backlog* backlog) {
  return backlog->bytes + backlog->begin;
}

/* So many of the first bytes have had their turn. */
static inline void backlog_take(struct backlog* backlog, size_t count) {
  backlog->begin += (uint32_t)count;
}

/* Returns 0, or ENOMEM also when all backlogs together would take too much: what
   nobody reads must not fill the guest's memory. */
int backlog_add(struct backlog* backlog, const uint8_t* bytes, size_t count);
/* Drops what waits. */
void backlog_clear(struct backlog* backlog);
