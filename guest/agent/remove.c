// Removing files and trees: FK_FILE_REMOVE.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "operation.h"
#include "protocol.h"

enum {
  // Entries are read and removed in batches of this size, one batch per turn of the loop.
  BATCH_BYTES = 4096,
  // Bound of the record of where in a tree we are, in bytes: thousands of levels.
  MAX_TRAIL_BYTES = 1024 * 1024,
};

// One step down a tree: which directory we came from, and the name that we took there.
struct step {
  dev_t dev;
  ino_t ino;
  size_t name_bytes; /* with NUL; the name precedes this struct in the trail */
};

// Walks a tree with a single descriptor, whatever its depth. A step down never follows a symbolic
// link, and a step up checks that ".." is where it came from: somebody else may move things about.
struct remove_operation {
  struct operation operation;
  int fd;      /* the directory that is being emptied */
  char* path;  /* of the tree; a copy */
  char* trail; /* names and steps, innermost last */
  size_t trail_bytes, trail_size;
};

static void finish_remove(struct remove_operation* removal, int error) {
  if (removal->fd >= 0) close(removal->fd);
  free(removal->path);
  free(removal->trail);
  connection_reply(removal->operation.id, error);
  operation_finish(&removal->operation);
}

static int push_step(struct remove_operation* removal, const char* name) {
  struct stat here;
  if (fstat(removal->fd, &here) < 0) return errno;
  const struct step step = {here.st_dev, here.st_ino, strlen(name) + 1};
  const size_t more = step.name_bytes + sizeof(step);
  if (removal->trail_size - removal->trail_bytes < more) {
    const size_t size = removal->trail_size ? removal->trail_size * 2 : BATCH_BYTES;
    char* trail = size > MAX_TRAIL_BYTES ? NULL : realloc(removal->trail, size);
    if (!trail) return ENOMEM;
    removal->trail = trail;
    removal->trail_size = size;
  }
  memcpy(removal->trail + removal->trail_bytes, name, step.name_bytes);
  removal->trail_bytes += step.name_bytes;
  memcpy(removal->trail + removal->trail_bytes, &step, sizeof(step));
  removal->trail_bytes += sizeof(step);
  return 0;
}

static int open_directory(int at, const char* name) {
  return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int descend(struct remove_operation* removal, const char* name) {
  const int fd = open_directory(removal->fd, name);
  if (fd < 0) return errno == ENOENT ? 0 : errno;
  const int error = push_step(removal, name);
  if (error != 0) {
    close(fd);
    return error;
  }
  close(removal->fd);
  removal->fd = fd;
  return 0;
}

// Leaves the directory, which is empty, and removes it from its parent.
static int ascend(struct remove_operation* removal) {
  struct step step;
  removal->trail_bytes -= sizeof(step);
  memcpy(&step, removal->trail + removal->trail_bytes, sizeof(step));
  removal->trail_bytes -= step.name_bytes;
  const char* name = removal->trail + removal->trail_bytes;

  const int parent = open_directory(removal->fd, "..");
  if (parent < 0) return errno;
  close(removal->fd);
  removal->fd = parent;
  struct stat here;
  if (fstat(parent, &here) < 0) return errno;
  if (here.st_dev != step.dev || here.st_ino != step.ino) return ENOENT;
  if (unlinkat(parent, name, AT_REMOVEDIR) < 0 && errno != ENOENT) return errno;
  return 0;
}

// Besides 0 and errno: the walk has gone one directory down; the top directory is empty.
enum { DESCENDED = -1, EMPTIED = -2 };

// Returns 0, an errno, or DESCENDED.
static int remove_entry(struct remove_operation* removal, const struct dirent* entry) {
  const char* name = entry->d_name;
  if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return 0;
  if (entry->d_type != DT_DIR) {
    if (unlinkat(removal->fd, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR) return errno;
  }
  if (unlinkat(removal->fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
  if (errno != ENOTEMPTY && errno != EEXIST) return errno;
  const int error = descend(removal, name);
  return error != 0 ? error : DESCENDED;
}

// Removes a batch of entries, or goes one directory up or down. Returns 0, an errno, or EMPTIED.
static int remove_some(struct remove_operation* removal) {
  _Alignas(8) uint8_t batch[BATCH_BYTES];
  // From the start, since what was found before is gone.
  if (lseek(removal->fd, 0, SEEK_SET) < 0) return errno;
  const long bytes = syscall(SYS_getdents64, removal->fd, batch, sizeof(batch));
  if (bytes < 0) return errno;
  bool found = false;
  for (long at = 0; at < bytes;) {
    const struct dirent* entry = (const struct dirent*)(batch + at);
    at += entry->d_reclen;
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) found = true;
    const int error = remove_entry(removal, entry);
    if (error == DESCENDED) return 0;
    if (error != 0) return error;
  }
  if (found) return 0;
  return removal->trail_bytes > 0 ? ascend(removal) : EMPTIED;
}

static void remove_run(struct operation* operation) {
  struct remove_operation* removal = (struct remove_operation*)operation;
  const int error = remove_some(removal);
  if (error == 0) {
    operation_schedule(operation);
  } else if (error == EMPTIED) {
    finish_remove(removal, rmdir(removal->path) == 0 || errno == ENOENT ? 0 : errno);
  } else {
    finish_remove(removal, error);
  }
}

static void remove_cancel(struct operation* operation, int error) {
  finish_remove((struct remove_operation*)operation, error);
}

static const struct operation_type remove_type = {.run = remove_run, .cancel = remove_cancel};

static int remove_tree(uint32_t id, const char* path) {
  // An empty directory goes at once, and one that cannot go (the root, a mount point) keeps its
  // contents.
  if (rmdir(path) == 0) return 0;
  if (errno != ENOTEMPTY && errno != EEXIST) return errno;
  const int fd = open_directory(AT_FDCWD, path);
  if (fd < 0) return errno;
  struct remove_operation* removal = operation_new(&remove_type, id, sizeof(*removal));
  char* copy = strdup(path);
  if (!removal || !copy) {
    close(fd);
    free(copy);
    if (removal) operation_finish(&removal->operation);
    return ENOMEM;
  }
  removal->fd = fd;
  removal->path = copy;
  operation_schedule(&removal->operation);
  return -1;
}

int file_remove(uint32_t id, const struct file_request* request) {
  if (unlink(request->path) == 0) return 0;
  int error = errno;
  if (error == EISDIR && request->flags & FK_FILE_RECURSIVE) error = remove_tree(id, request->path);
  return error == ENOENT && request->flags & FK_FILE_FORCE ? 0 : error;
}
