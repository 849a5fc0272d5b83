/* Where a transfer is in a tree: one directory is open, however deep it is. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "protocol.h"

/* A step down. */
struct step {
  dev_t dev; /* of the directory above: ".." must lead there and nowhere else */
  ino_t ino;
  uint16_t path_bytes; /* of its path */
  /* The caller's own. */
  bool existed;
  mode_t mode;
  struct timespec times[2];
  size_t waiting;
};

struct trail {
  int fd;    /* of the directory; AT_FDCWD above the tree */
  dev_t dev; /* it */
  ino_t ino;
  uint32_t depth; /* 0 above the tree */
  uint32_t room;
  struct step* steps;
  /* The directory's path below the top, and behind that the entry's that was named last. */
  uint16_t path_bytes, entry_bytes;
  char path[FK_MAX_PATH + 1];
};

void trail_init(struct trail* trail);
void trail_close(struct trail* trail);

/* Names an entry of the directory. Returns its name with a NUL, valid until the
   next one is named, or NULL if the path is too long. */
const char* trail_name(struct trail* trail, const void* name, size_t bytes);

/* Goes into the entry that was named last, opened as `fd`, which is the trail's
   from here on. Returns 0 or an errno. The step is trail_top(). */
int trail_enter(struct trail* trail, int fd, const struct stat* status);

static inline struct step* trail_top(struct trail* trail) {
  return &trail->steps[trail->depth - 1];
}

/* Goes back up. `*left` is the directory that was left, the caller's to close,
   and `*step` the step that had led there. Returns 0, or an errno: ENOENT when
   somebody has moved the directory. */
int trail_leave(struct trail* trail, int* left, struct step* step);
