#include "place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "tree_times.h"

enum {
  // Bound of the paths that wait for further names, in bytes.
  MAX_NAMES_BYTES = 8 * 1024 * 1024,
  FIRST_NAMES_BYTES = 4096,
  OPEN_DIRECTORY = O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
};

void place_init(struct place* place, const char* path) {
  trail_init(&place->trail);
  place->path = path;
  place->top = place->file = -1;
  place->mask = umask(0);
  umask(place->mask);
}

// How the entry that was named last is reached from the directory that is open.
static const char* entry_name(const struct place* place) {
  if (place->trail.depth == 0) return place->path;
  const size_t directory = place->trail.path_bytes;
  return place->trail.path + (directory > 0 ? directory + 1 : 0);
}

void place_close(struct place* place) {
  if (place->file >= 0) {
    close(place->file);
    unlinkat(place->trail.fd, entry_name(place), 0);
  }
  if (place->top >= 0) close(place->top);
  place->file = place->top = -1;
  trail_close(&place->trail);
  free(place->names);
  free(place->begins);
  place->names = NULL;
  place->begins = NULL;
}

static void take_times(struct timespec times[2], const struct fk_tree_entry* entry) {
  times[0] = tree_time(entry->accessed_ns);
  times[1] = tree_time(entry->modified_ns);
}

// Removes what stands in the way of an entry that is no directory. Returns 0 or an errno.
static int clear(const struct place* place, const char* name) {
  return unlinkat(place->trail.fd, name, 0) == 0 || errno == ENOENT ? 0 : errno;
}

int place_directory(struct place* place, const struct fk_tree_entry* entry) {
  struct trail* trail = &place->trail;
  const char* name = entry_name(place);
  // Its owner has to get in until it is complete.
  const mode_t mode = entry->mode | 0700;
  const bool existed = mkdirat(trail->fd, name, mode) < 0;
  if (existed && errno != EEXIST) return errno;
  const int fd = file_open_at(trail->fd, name, OPEN_DIRECTORY, 0);
  if (fd < 0) return errno;
  struct stat status;
  int error = fstat(fd, &status) == 0 ? 0 : errno;
  if (error == 0 && trail->depth == 0) {
    place->top = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (place->top < 0) error = errno;
  }
  if (error != 0) {
    close(fd);
    return error;
  }
  error = trail_enter(trail, fd, &status);
  if (error != 0) return error;
  struct step* step = trail_top(trail);
  step->existed = existed;
  step->mode = entry->mode;
  take_times(step->times, entry);
  return 0;
}

// A directory that was there before keeps its mode, and the times that it has got.
static int finish_directory(const struct place* place, int fd, const struct step* step) {
  if (step->existed) return 0;
  // The bits that it was made with. What it has from its parent, setgid, stays.
  const mode_t made = (step->mode | 0700) & ~place->mask;
  if (made != step->mode && fchmod(fd, step->mode) < 0) return errno;
  return futimens(fd, step->times) == 0 ? 0 : errno;
}

int place_leave(struct place* place) {
  int fd;
  struct step step;
  int error = trail_leave(&place->trail, &fd, &step);
  if (error != 0) return error;
  error = finish_directory(place, fd, &step);
  close(fd);
  return error;
}

// Makes room for that many bytes, or elements. Returns 0 or ENOMEM.
static int reserve(void** buffer, uint32_t* room, uint32_t needed, size_t size) {
  if (needed <= *room) return 0;
  uint32_t larger = *room ? *room : FIRST_NAMES_BYTES;
  while (larger < needed) larger *= 2;
  void* memory = larger > MAX_NAMES_BYTES ? NULL : realloc(*buffer, larger * size);
  if (!memory) return ENOMEM;
  *buffer = memory;
  *room = larger;
  return 0;
}

static int remember(struct place* place) {
  const struct trail* trail = &place->trail;
  const uint32_t bytes = trail->entry_bytes + 1u;
  int error =
      reserve((void**)&place->names, &place->names_room, place->names_bytes + bytes, sizeof(char));
  if (error == 0) {
    error = reserve((void**)&place->begins, &place->links_room, place->links + 1, sizeof(uint32_t));
  }
  if (error != 0) return error;
  memcpy(place->names + place->names_bytes, trail->path, bytes);
  place->begins[place->links++] = place->names_bytes;
  place->names_bytes += bytes;
  return 0;
}

int place_file(struct place* place, const struct fk_tree_entry* entry) {
  const char* name = entry_name(place);
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
  int error = entry->flags & FK_TREE_LINKED ? remember(place) : 0;
  if (error != 0) return error;
  int fd = file_open_at(place->trail.fd, name, flags, entry->mode);
  if (fd < 0 && errno == EEXIST) {
    error = clear(place, name);
    if (error != 0) return error;
    fd = file_open_at(place->trail.fd, name, flags, entry->mode);
  }
  if (fd < 0) return errno;
  place->file = fd;
  place->mode = entry->mode;
  take_times(place->times, entry);
  place->written = 0;
  return 0;
}

int place_bytes(struct place* place, uint64_t offset, const uint8_t* bytes, size_t count) {
  while (count > 0) {
    const ssize_t n = pwrite(place->file, bytes, count, (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    bytes += n;
    offset += (uint64_t)n;
    count -= (size_t)n;
  }
  place->written = offset;
  return 0;
}

int place_file_end(struct place* place, uint64_t size) {
  const int fd = place->file;
  if (size > place->written && ftruncate(fd, (off_t)size) < 0) return errno;
  if (place->mode & place->mask && fchmod(fd, place->mode) < 0) return errno;
  if (futimens(fd, place->times) < 0) return errno;
  place->file = -1;
  close(fd);
  return 0;
}

int place_symlink(struct place* place, const struct fk_tree_entry* entry, const char* target) {
  const char* name = entry_name(place);
  const int at = place->trail.fd;
  if (symlinkat(target, at, name) < 0) {
    if (errno != EEXIST) return errno;
    const int error = clear(place, name);
    if (error != 0) return error;
    if (symlinkat(target, at, name) < 0) return errno;
  }
  struct timespec times[2];
  take_times(times, entry);
  return utimensat(at, name, times, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : errno;
}

// Opens the directory that a path below the top is in, a name at a time, so that none of them is a
// link. `*name` is the last one. Returns the descriptor, or -1 with errno.
static int open_parent(const struct place* place, char* path, const char** name) {
  int at = place->top;
  for (;;) {
    char* slash = strchr(path, '/');
    *name = path;
    if (!slash) return at;
    *slash = 0;
    const int next = file_open_at(at, path, OPEN_DIRECTORY, 0);
    *slash = '/';
    const int error = errno;
    if (at != place->top) close(at);
    errno = error;
    if (next < 0) return -1;
    at = next;
    path = slash + 1;
  }
}

int place_link(struct place* place, uint64_t number) {
  if (number >= place->links) return EPROTO;
  const char* new_name = entry_name(place);
  const char* name;
  const int from = open_parent(place, place->names + place->begins[number], &name);
  if (from < 0) return errno;
  const int at = place->trail.fd;
  int error = linkat(from, name, at, new_name, 0) == 0 ? 0 : errno;
  if (error == EEXIST) {
    error = clear(place, new_name);
    if (error == 0 && linkat(from, name, at, new_name, 0) < 0) error = errno;
  }
  if (from != place->top) close(from);
  return error;
}
