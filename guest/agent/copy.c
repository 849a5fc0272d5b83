// Copying files inside the guest: FK_FILE_COPY.

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "operation.h"
#include "protocol.h"

// Copied in one step.
enum { STEP_BYTES = 64 * 1024 };

struct copy_operation {
  struct operation operation;
  int from, to;
  bool created; /* a copy that fails leaves no file that was not there */
  bool plain;   /* sendfile cannot copy from this file system */
  uint64_t remaining;
  char path[]; /* of the copy */
};

static void finish_copy(struct copy_operation* copy, int error) {
  if (error != 0 && copy->created) unlink(copy->path);
  close(copy->from);
  close(copy->to);
  connection_reply(copy->operation.id, error);
  operation_finish(&copy->operation);
}

static ssize_t copy_plainly(const struct copy_operation* copy, size_t count) {
  static uint8_t buffer[STEP_BYTES];
  const ssize_t bytes = read(copy->from, buffer, count);
  for (ssize_t written = 0; written < bytes;) {
    const ssize_t n = write(copy->to, buffer + written, (size_t)(bytes - written));
    if (n < 0 && errno != EINTR) return -1;
    if (n > 0) written += n;
  }
  return bytes;
}

static void copy_run(struct operation* operation) {
  struct copy_operation* copy = (struct copy_operation*)operation;
  const size_t count = copy->remaining < STEP_BYTES ? (size_t)copy->remaining : STEP_BYTES;
  ssize_t bytes = 0;
  if (count > 0) {
    bytes = copy->plain ? copy_plainly(copy, count) : sendfile(copy->to, copy->from, NULL, count);
  }
  if (bytes == 0) {
    finish_copy(copy, 0);
    return;
  }
  if (bytes > 0) {
    copy->remaining -= (uint64_t)bytes;
  } else if (!copy->plain && (errno == EINVAL || errno == ENOSYS)) {
    copy->plain = true;
  } else if (errno != EINTR) {
    finish_copy(copy, errno);
    return;
  }
  operation_schedule(operation);
}

static void copy_cancel(struct operation* operation, int error) {
  finish_copy((struct copy_operation*)operation, error);
}

static const struct operation_type copy_type = {.run = copy_run, .cancel = copy_cancel};

static int regular(int fd, struct stat* status) {
  if (fstat(fd, status) < 0) return errno;
  if (S_ISDIR(status->st_mode)) return EISDIR;
  return S_ISREG(status->st_mode) ? 0 : EINVAL;
}

// Opens the copy, whose contents stay as they are for now. Returns an errno or 0.
static int open_copy(const char* path, mode_t mode, bool exclusive, int* fd, bool* created) {
  *fd = file_open(path, O_WRONLY | O_CREAT | O_EXCL, mode);
  *created = *fd >= 0;
  if (*fd < 0 && errno == EEXIST && !exclusive) *fd = file_open(path, O_WRONLY | O_CREAT, mode);
  return *fd < 0 ? errno : 0;
}

// Makes an empty file of the copy. Returns an errno, 0, or -1 if it is the original.
static int prepare_copy(int fd, const struct stat* original) {
  struct stat status;
  const int error = regular(fd, &status);
  if (error != 0) return error;
  if (status.st_dev == original->st_dev && status.st_ino == original->st_ino) return -1;
  if (ftruncate(fd, 0) < 0) return errno;
  // Whatever the umask, and whether or not it was there.
  return fchmod(fd, original->st_mode & 07777) == 0 ? 0 : errno;
}

static struct copy_operation* new_copy(uint32_t id, const char* path) {
  const size_t bytes = strlen(path) + 1;
  struct copy_operation* copy = operation_new(&copy_type, id, sizeof(*copy) + bytes);
  if (copy) memcpy(copy->path, path, bytes);
  return copy;
}

int file_copy(uint32_t id, const struct file_request* request) {
  const bool exclusive = (request->flags & FK_FILE_EXCLUSIVE) != 0;
  const int from = file_open(request->path, O_RDONLY, 0);
  if (from < 0) return errno;
  int to = -1;
  bool created = false;
  struct stat original;
  struct copy_operation* copy = NULL;
  int error = regular(from, &original);
  if (error == 0) {
    error = open_copy(request->destination, original.st_mode & 07777, exclusive, &to, &created);
  }
  if (error == 0) error = prepare_copy(to, &original);
  if (error == 0 && !(copy = new_copy(id, request->destination))) error = ENOMEM;
  if (error != 0) {
    close(from);
    if (to >= 0) close(to);
    if (created) unlink(request->destination);
    return error < 0 ? 0 : error;
  }
  copy->from = from;
  copy->to = to;
  copy->created = created;
  // A file that grows meanwhile is copied as it was. In /proc files have no size.
  copy->remaining = original.st_size > 0 ? (uint64_t)original.st_size : UINT64_MAX;
  operation_schedule(&copy->operation);
  return -1;
}
