#include "trail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"

enum { FIRST_STEPS = 16 };

void trail_init(struct trail* trail) { trail->fd = AT_FDCWD; }

void trail_close(struct trail* trail) {
  if (trail->fd >= 0) close(trail->fd);
  trail->fd = AT_FDCWD;
  free(trail->steps);
  trail->steps = NULL;
  trail->depth = trail->room = 0;
}

const char* trail_name(struct trail* trail, const void* name, size_t bytes) {
  size_t at = trail->path_bytes;
  if (at + 1 + bytes > FK_MAX_PATH) return NULL;
  if (at > 0) trail->path[at++] = '/';
  memcpy(trail->path + at, name, bytes);
  trail->entry_bytes = (uint16_t)(at + bytes);
  trail->path[trail->entry_bytes] = 0;
  return trail->path + at;
}

int trail_enter(struct trail* trail, int fd, const struct stat* status) {
  // A path has 2,048 names at most, and so many steps.
  if (trail->depth == trail->room) {
    const uint32_t room = trail->room ? 2 * trail->room : FIRST_STEPS;
    struct step* steps = realloc(trail->steps, room * sizeof(*steps));
    if (!steps) {
      close(fd);
      return ENOMEM;
    }
    trail->steps = steps;
    trail->room = room;
  }
  trail->steps[trail->depth++] =
      (struct step){.dev = trail->dev, .ino = trail->ino, .path_bytes = trail->path_bytes};
  if (trail->fd >= 0) close(trail->fd);
  trail->fd = fd;
  trail->dev = status->st_dev;
  trail->ino = status->st_ino;
  trail->path_bytes = trail->entry_bytes;
  return 0;
}

int trail_leave(struct trail* trail, int* left, struct step* step) {
  *step = *trail_top(trail);
  int above = AT_FDCWD;
  trail->entry_bytes = trail->path_bytes;
  if (trail->depth > 1) {
    struct stat status;
    above = file_open_at(trail->fd, "..", O_RDONLY | O_DIRECTORY, 0);
    if (above < 0) return errno;
    const bool known = fstat(above, &status) == 0;
    if (!known || status.st_dev != step->dev || status.st_ino != step->ino) {
      close(above);
      return ENOENT;
    }
  }
  *left = trail->fd;
  trail->fd = above;
  trail->dev = step->dev;
  trail->ino = step->ino;
  trail->path_bytes = step->path_bytes;
  trail->depth--;
  return 0;
}
