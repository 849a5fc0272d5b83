#include "replacement.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "limits.h"
#include "protocol.h"

enum { MAX_LINKS = 40 };

// Beside the file, so that it is on the same file system, and hidden.
static const char TEMPORARY[] = ".forklet-XXXXXX";

struct replacement {
  int fd;          /* of the temporary file, besides the one that is written to */
  bool exclusive;  /* there must be no file yet */
  char* temporary; /* behind `path` */
  char path[];
};

static size_t directory_bytes(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? (size_t)(slash - path) + 1 : 0;
}

// Replaces a symbolic link by what it says, as often as need be: the file is replaced, not the
// link.
static int follow_links(char path[PATH_MAX]) {
  for (int links = 0; links < MAX_LINKS; links++) {
    char target[PATH_MAX];
    const ssize_t bytes = readlink(path, target, sizeof(target));
    if (bytes < 0) return errno == EINVAL || errno == ENOENT ? 0 : errno;
    const size_t base = target[0] == '/' ? 0 : directory_bytes(path);
    if (base + (size_t)bytes >= PATH_MAX) return ENAMETOOLONG;
    memcpy(path + base, target, (size_t)bytes);
    path[base + (size_t)bytes] = 0;
  }
  return ELOOP;
}

// The temporary file gets what the file has that it replaces, or what a new one would have.
static int set_attributes(int fd, const struct stat* old, mode_t mode) {
  enum { UMASK = 022 };
  if (!old) return fchmod(fd, mode & ~(mode_t)UMASK) == 0 ? 0 : errno;
  // Before the mode, whose special bits it clears.
  if (fchown(fd, old->st_uid, old->st_gid) < 0) return errno;
  return fchmod(fd, old->st_mode & 07777) == 0 ? 0 : errno;
}

// Returns 0 or an errno. `*exists` says whether `*old` has anything.
static int look_at_old(const struct replacement* replacement, struct stat* old, bool* exists) {
  *exists = (replacement->exclusive ? lstat : stat)(replacement->path, old) == 0;
  if (!*exists) return errno == ENOENT ? 0 : errno;
  if (replacement->exclusive) return EEXIST;
  if (S_ISDIR(old->st_mode)) return EISDIR;
  return S_ISREG(old->st_mode) ? 0 : EINVAL;
}

static int make_temporary(struct replacement* replacement) {
  do {
    replacement->fd = mkostemp(replacement->temporary, O_CLOEXEC);
  } while (replacement->fd < 0 && limits_retry());
  return replacement->fd < 0 ? errno : 0;
}

static int open_temporary(struct replacement* replacement, mode_t mode, int* fd) {
  struct stat old;
  bool exists;
  int error = look_at_old(replacement, &old, &exists);
  if (error == 0) error = make_temporary(replacement);
  if (error != 0) return error;
  error = set_attributes(replacement->fd, exists ? &old : NULL, mode);
  *fd = error == 0 ? fcntl(replacement->fd, F_DUPFD_CLOEXEC, 0) : -1;
  if (error == 0 && *fd < 0) error = errno;
  if (error == 0) return 0;
  unlink(replacement->temporary);
  close(replacement->fd);
  return error;
}

int replacement_begin(const struct file_request* request, struct replacement** result, int* fd) {
  char path[PATH_MAX];
  const size_t given = strlen(request->path);
  if (given >= sizeof(path)) return ENAMETOOLONG;
  if (given == 0) return ENOENT;
  memcpy(path, request->path, given + 1);
  const bool exclusive = (request->flags & FK_FILE_EXCLUSIVE) != 0;
  int error = exclusive ? 0 : follow_links(path);
  if (error != 0) return error;

  const size_t bytes = strlen(path) + 1;
  const size_t base = directory_bytes(path);
  struct replacement* replacement = malloc(sizeof(*replacement) + bytes + base + sizeof(TEMPORARY));
  if (!replacement) return ENOMEM;
  replacement->exclusive = exclusive;
  memcpy(replacement->path, path, bytes);
  replacement->temporary = replacement->path + bytes;
  memcpy(replacement->temporary, path, base);
  memcpy(replacement->temporary + base, TEMPORARY, sizeof(TEMPORARY));
  error = open_temporary(replacement, request->mode & 07777, fd);
  if (error == 0) {
    *result = replacement;
  } else {
    free(replacement);
  }
  return error;
}

static int commit(const struct replacement* replacement) {
  if (fsync(replacement->fd) < 0) return errno;
  if (!replacement->exclusive) {
    return rename(replacement->temporary, replacement->path) == 0 ? 0 : errno;
  }
  // Unlike rename(2), link(2) replaces nothing.
  if (link(replacement->temporary, replacement->path) < 0) return errno;
  unlink(replacement->temporary);
  return 0;
}

int replacement_end(struct replacement* replacement, int error) {
  if (error == 0) error = commit(replacement);
  if (error != 0) unlink(replacement->temporary);
  close(replacement->fd);
  free(replacement);
  return error;
}
