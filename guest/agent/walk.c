#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"
#include "protocol.h"

enum {
  // Bound of the paths that wait, in bytes; what a listing may have is no more.
  MAX_WAITING_BYTES = 8 * 1024 * 1024,
  FIRST_BYTES = 256,
};

void walk_init(struct walk* walk) { walk->root = walk->fd = -1; }

int walk_open(struct walk* walk, const char* path) {
  walk->root = file_open(path, O_RDONLY | O_DIRECTORY, 0);
  return walk->root < 0 ? errno : 0;
}

static void close_directory(struct walk* walk) {
  if (walk->fd >= 0 && walk->fd != walk->root) close(walk->fd);
  walk->fd = -1;
  walk->begin = walk->end = 0;
}

void walk_close(struct walk* walk) {
  close_directory(walk);
  if (walk->root >= 0) close(walk->root);
  walk->root = -1;
  free(walk->prefix);
  free(walk->waiting);
  walk->prefix = walk->waiting = NULL;
  walk->prefix_bytes = walk->prefix_size = 0;
  walk->waiting_bytes = walk->waiting_size = 0;
}

static int reserve(char** buffer, size_t* size, size_t bytes) {
  if (bytes <= *size) return 0;
  size_t larger = *size ? *size : FIRST_BYTES;
  while (larger < bytes) larger *= 2;
  char* memory = larger > MAX_WAITING_BYTES ? NULL : realloc(*buffer, larger);
  if (!memory) return ENOMEM;
  *buffer = memory;
  *size = larger;
  return 0;
}

// Both parts together are the path.
static int add(struct walk* walk, const char* path, size_t path_bytes, const char* name,
               size_t name_bytes, bool silent) {
  const uint16_t bytes = (uint16_t)(path_bytes + name_bytes);
  if (path_bytes + name_bytes > FK_MAX_PATH) return ENAMETOOLONG;
  const size_t more = 1 + (size_t)bytes + 1 + sizeof(bytes);
  const int error = reserve(&walk->waiting, &walk->waiting_size, walk->waiting_bytes + more);
  if (error != 0) return error;
  char* at = walk->waiting + walk->waiting_bytes;
  *at++ = silent ? 1 : 0;
  if (path_bytes > 0) memcpy(at, path, path_bytes);
  at += path_bytes;
  if (name_bytes > 0) memcpy(at, name, name_bytes);
  at += name_bytes;
  *at++ = 0;
  memcpy(at, &bytes, sizeof(bytes));
  walk->waiting_bytes += more;
  return 0;
}

int walk_add(struct walk* walk, const char* path, size_t bytes, bool silent) {
  return add(walk, NULL, 0, path, bytes, silent);
}

int walk_add_entry(struct walk* walk, const struct walk_entry* entry) {
  return add(walk, walk->prefix, walk->prefix_bytes, entry->name, entry->name_bytes, walk->silent);
}

static int open_next(struct walk* walk, const char* path) {
  if (*path == 0) {
    walk->fd = walk->root;
    return lseek(walk->fd, 0, SEEK_SET) < 0 ? errno : 0;
  }
  walk->fd = openat(walk->root, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  return walk->fd < 0 ? errno : 0;
}

int walk_next(struct walk* walk) {
  close_directory(walk);
  while (walk->waiting_bytes > 0) {
    uint16_t bytes;
    walk->waiting_bytes -= sizeof(bytes);
    memcpy(&bytes, walk->waiting + walk->waiting_bytes, sizeof(bytes));
    walk->waiting_bytes -= (size_t)bytes + 2;
    const char* path = walk->waiting + walk->waiting_bytes + 1;
    walk->silent = path[-1] != 0;
    const int error = open_next(walk, path);
    // Gone, or something else by now.
    if (error == ENOENT || error == ENOTDIR || error == ELOOP) continue;
    if (error != 0) return error;
    walk->prefix_bytes = bytes > 0 ? (size_t)bytes + 1 : 0;
    const int full = reserve(&walk->prefix, &walk->prefix_size, (size_t)bytes + 1);
    if (full != 0) return full;
    memcpy(walk->prefix, path, bytes);
    walk->prefix[bytes] = '/';
    return 0;
  }
  return WALK_END;
}

int walk_read(struct walk* walk) {
  if (walk->fd < 0) return WALK_NEXT;
  const long count = syscall(SYS_getdents64, walk->fd, walk->batch, WALK_BATCH_BYTES);
  if (count < 0) return errno == ENOENT ? WALK_NEXT : errno;
  walk->begin = 0;
  walk->end = (uint32_t)count;
  return count == 0 ? WALK_NEXT : 0;
}

bool walk_take(struct walk* walk, struct walk_entry* entry) {
  while (walk->begin < walk->end) {
    const struct dirent* next = (const struct dirent*)(walk->batch + walk->begin);
    walk->begin += next->d_reclen;
    if (strcmp(next->d_name, ".") == 0 || strcmp(next->d_name, "..") == 0) continue;
    entry->name = next->d_name;
    entry->name_bytes = strlen(next->d_name);
    entry->type = next->d_type;
    return true;
  }
  return false;
}
