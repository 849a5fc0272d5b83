// File contents: FK_FILE_READ, FK_FILE_WRITE.

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "operation.h"
#include "protocol.h"
#include "replacement.h"
#include "stream.h"

// Reading a file.

struct read_operation {
  struct operation operation;
  struct outlet outlet;
};

static void finish_read(struct read_operation* reading, int error) {
  outlet_close(&reading->outlet);
  connection_reply(reading->operation.id, error);
  operation_finish(&reading->operation);
}

static void read_run(struct operation* operation) {
  struct read_operation* reading = (struct read_operation*)operation;
  switch (outlet_pump(&reading->outlet)) {
    case PROGRESS_WAIT:
      return;
    case PROGRESS_AGAIN:
      operation_schedule(operation);
      return;
    case PROGRESS_ENDED:
      finish_read(reading, 0);
      return;
    case PROGRESS_FAILED:
      finish_read(reading, errno);
      return;
  }
}

static void read_cancel(struct operation* operation, int error) {
  finish_read((struct read_operation*)operation, error);
}

static void read_window(struct operation* operation, uint16_t stream, uint64_t limit) {
  if (stream == FK_OUTPUT) outlet_window(&((struct read_operation*)operation)->outlet, limit);
}

static const struct operation_type read_type = {
    .run = read_run, .cancel = read_cancel, .window = read_window};

int file_read(uint32_t id, const struct file_request* request) {
  if (request->first > INT64_MAX) return EPROTO;
  const int fd = file_open(request->path, O_RDONLY, 0);
  if (fd < 0) return errno;
  struct read_operation* reading = NULL;
  int error = 0;
  if (request->first > 0 && lseek(fd, (off_t)request->first, SEEK_SET) < 0) error = errno;
  if (error == 0) reading = operation_new(&read_type, id, sizeof(*reading));
  if (!reading) {
    close(fd);
    return error != 0 ? error : ENOMEM;
  }
  outlet_open(&reading->outlet, &reading->operation, fd, FK_OUTPUT, OUTLET_FILE);
  reading->outlet.limit = request->output_limit;
  reading->outlet.remaining = request->count;
  operation_schedule(&reading->operation);
  return -1;
}

// Writing a file.

struct write_operation {
  struct operation operation;
  struct inlet inlet;
  struct replacement* replacement; /* NULL: the file itself is written */
};

static void finish_write(struct write_operation* writing, int error) {
  inlet_close(&writing->inlet);
  if (writing->replacement) error = replacement_end(writing->replacement, error);
  connection_reply(writing->operation.id, error);
  operation_finish(&writing->operation);
}

static void write_progress(struct write_operation* writing, int error) {
  if (error != 0 || inlet_is_done(&writing->inlet)) finish_write(writing, error);
}

static void write_run(struct operation* operation) {
  struct write_operation* writing = (struct write_operation*)operation;
  write_progress(writing, inlet_pump(&writing->inlet));
}

static void write_input(struct operation* operation, uint64_t offset, const uint8_t* bytes,
                        size_t count, bool end) {
  struct write_operation* writing = (struct write_operation*)operation;
  write_progress(writing, inlet_input(&writing->inlet, offset, bytes, count, end));
}

static void write_cancel(struct operation* operation, int error) {
  finish_write((struct write_operation*)operation, error);
}

static const struct operation_type write_type = {
    .run = write_run, .cancel = write_cancel, .input = write_input};

// At most one of these says what becomes of the contents that are there.
static bool write_flags_agree(const struct file_request* request) {
  const uint32_t flags = request->flags;
  const bool append = (flags & FK_FILE_APPEND) != 0;
  const bool update = (flags & FK_FILE_UPDATE) != 0;
  const bool atomic = (flags & FK_FILE_ATOMIC) != 0;
  if (append + update + atomic > 1 || (update && flags & FK_FILE_EXCLUSIVE)) return false;
  if (request->first > INT64_MAX || request->count != UINT64_MAX) return false;
  return request->first == 0 || !(append || atomic);
}

static int open_to_write(const struct file_request* request) {
  int flags = O_WRONLY;
  if (!(request->flags & FK_FILE_UPDATE)) {
    flags |= O_CREAT | (request->flags & FK_FILE_APPEND ? O_APPEND : O_TRUNC);
  }
  if (request->flags & FK_FILE_EXCLUSIVE) flags |= O_EXCL;
  const int fd = file_open(request->path, flags, request->mode & 07777);
  if (fd < 0 || request->first == 0) return fd;
  if (lseek(fd, (off_t)request->first, SEEK_SET) >= 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int file_write(uint32_t id, const struct file_request* request) {
  if (!write_flags_agree(request)) return EPROTO;
  struct replacement* replacement = NULL;
  int fd = -1;
  if (request->flags & FK_FILE_ATOMIC) {
    const int error = replacement_begin(request, &replacement, &fd);
    if (error != 0) return error;
  } else {
    fd = open_to_write(request);
    if (fd < 0) return errno;
  }
  struct write_operation* writing = operation_new(&write_type, id, sizeof(*writing));
  if (!writing) {
    close(fd);
    return replacement ? replacement_end(replacement, ENOMEM) : ENOMEM;
  }
  writing->replacement = replacement;
  inlet_open(&writing->inlet, &writing->operation, fd, FK_FILE_WINDOW);
  return -1;
}
