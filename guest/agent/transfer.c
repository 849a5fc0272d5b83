// File contents and directory listings: FK_FILE_READ, FK_FILE_WRITE, FK_FILE_READDIR.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
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
  outlet_open(&reading->outlet, &reading->operation, fd, FK_OUTPUT, false);
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

// Listing a directory.

enum { LIST_BYTES = 16 * 1024, DIRENT_HEADER = sizeof(struct fk_dirent) };

struct list_operation {
  struct operation operation;
  int fd;
  bool complete; /* the directory has no more entries */
  uint64_t sent, limit;
  // Entries that have been read and not sent: buffer[begin, end).
  uint32_t begin, end;
  // Aligned for the kernel's struct linux_dirent64.
  _Alignas(8) uint8_t buffer[LIST_BYTES];
};

// Replaces the kernel's entries by ours, which are smaller. Returns the bytes that remain.
static uint32_t convert_entries(uint8_t* buffer, size_t bytes) {
  uint32_t end = 0;
  for (size_t at = 0; at < bytes;) {
    const struct dirent* entry = (const struct dirent*)(buffer + at);
    const size_t length = strlen(entry->d_name);
    const char* name = entry->d_name;
    at += entry->d_reclen;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
    const struct fk_dirent ours = {.name_bytes = (uint16_t)length, .type = entry->d_type};
    memmove(buffer + end + DIRENT_HEADER, name, length);
    memcpy(buffer + end, &ours, DIRENT_HEADER);
    end += DIRENT_HEADER + (uint32_t)length;
  }
  return end;
}

static void finish_list(struct list_operation* list, int error) {
  close(list->fd);
  if (error == 0) {
    const struct fk_header header = {
        .type = FK_END, .stream = FK_OUTPUT, .id = list->operation.id, .offset = list->sent};
    connection_send(&header, NULL);
  }
  connection_reply(list->operation.id, error);
  operation_finish(&list->operation);
}

static void send_entries(struct list_operation* list) {
  uint64_t count = list->end - list->begin;
  if (count > list->limit - list->sent) count = list->limit - list->sent;
  if (count == 0) return;
  const struct fk_header header = {.payload_bytes = (uint32_t)count,
                                   .type = FK_DATA,
                                   .stream = FK_OUTPUT,
                                   .id = list->operation.id,
                                   .offset = list->sent};
  connection_send(&header, list->buffer + list->begin);
  list->sent += count;
  list->begin += (uint32_t)count;
}

// Called with room for a frame of the largest size.
static void list_run(struct operation* operation) {
  struct list_operation* list = (struct list_operation*)operation;
  if (list->begin == list->end && !list->complete) {
    const long count = syscall(SYS_getdents64, list->fd, list->buffer, LIST_BYTES);
    if (count < 0) {
      finish_list(list, errno);
      return;
    }
    list->complete = count == 0;
    list->begin = 0;
    list->end = convert_entries(list->buffer, (size_t)count);
  }
  send_entries(list);
  if (list->begin < list->end) return;  // For a window.
  if (list->complete) {
    finish_list(list, 0);
  } else {
    operation_schedule(operation);
  }
}

static void list_cancel(struct operation* operation, int error) {
  finish_list((struct list_operation*)operation, error);
}

static void list_window(struct operation* operation, uint16_t stream, uint64_t limit) {
  struct list_operation* list = (struct list_operation*)operation;
  if (stream != FK_OUTPUT || limit <= list->limit) return;
  list->limit = limit;
  operation_schedule(operation);
}

static const struct operation_type list_type = {
    .run = list_run, .cancel = list_cancel, .window = list_window};

int file_readdir(uint32_t id, const struct file_request* request) {
  const int fd = file_open(request->path, O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0) return errno;
  struct list_operation* list = operation_new(&list_type, id, sizeof(*list));
  if (!list) {
    close(fd);
    return ENOMEM;
  }
  list->fd = fd;
  list->limit = request->output_limit;
  operation_schedule(&list->operation);
  return -1;
}
