#include "backlog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// Of all backlogs together, in bytes, and of one that is not empty.
enum { LIMIT = 16 * 1024 * 1024, MINIMUM = 4096 };
static size_t total;

// Makes room for so many bytes. Returns 0 or ENOMEM.
static int reserve(struct backlog* backlog, size_t bytes) {
  uint32_t size = backlog->size ? backlog->size : MINIMUM;
  while (size < bytes) size *= 2;
  if (size == backlog->size) return 0;
  const uint32_t more = size - backlog->size;
  uint8_t* larger = more > LIMIT - total ? NULL : realloc(backlog->bytes, size);
  if (!larger) return ENOMEM;
  total += more;
  backlog->bytes = larger;
  backlog->size = size;
  return 0;
}

int backlog_add(struct backlog* backlog, const uint8_t* bytes, size_t count) {
  const size_t length = backlog_length(backlog);
  const int error = reserve(backlog, length + count);
  if (error != 0) return error;
  if (backlog->begin > 0) memmove(backlog->bytes, backlog_first(backlog), length);
  memcpy(backlog->bytes + length, bytes, count);
  backlog->begin = 0;
  backlog->end = (uint32_t)(length + count);
  return 0;
}

void backlog_clear(struct backlog* backlog) {
  free(backlog->bytes);
  total -= backlog->size;
  *backlog = (struct backlog){0};
}
