// Names of files: FK_FILE_RENAME, FK_FILE_LINK, FK_FILE_SYMLINK, FK_FILE_READLINK,
// FK_FILE_REALPATH.

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "protocol.h"
#include "records.h"

_Static_assert(FK_MAX_PATH + 1 == PATH_MAX, "Linux's limit");
_Static_assert(2 * sizeof(struct fk_header) + sizeof(struct fk_record) + FK_MAX_PATH <=
                   CONNECTION_REPLY_ROOM,
               "a reply with a path has room");

int file_rename(uint32_t id, const struct file_request* request) {
  (void)id;
  return rename(request->path, request->destination) == 0 ? 0 : errno;
}

int file_link(uint32_t id, const struct file_request* request) {
  (void)id;
  return link(request->path, request->destination) == 0 ? 0 : errno;
}

int file_symlink(uint32_t id, const struct file_request* request) {
  (void)id;
  return symlink(request->path, request->destination) == 0 ? 0 : errno;
}

void file_reply_path(uint32_t id, int error, const char* path, size_t bytes) {
  uint8_t payload[sizeof(struct fk_record) + FK_MAX_PATH];
  const uint8_t* end = record_put(payload, FK_TAG_PATH, path, bytes);
  const struct fk_header header = {.payload_bytes = (uint32_t)(end - payload),
                                   .type = FK_REPLY,
                                   .id = id,
                                   .value = (uint32_t)error};
  connection_send(&header, payload);
}

int file_readlink(uint32_t id, const struct file_request* request) {
  char target[FK_MAX_PATH + 1];
  const ssize_t bytes = readlink(request->path, target, sizeof(target));
  if (bytes < 0) return errno;
  if (bytes == 0 || bytes > FK_MAX_PATH) return ENAMETOOLONG;
  file_reply_path(id, 0, target, (size_t)bytes);
  return -1;
}

int file_realpath(uint32_t id, const struct file_request* request) {
  char path[PATH_MAX];
  if (!realpath(request->path, path)) return errno;
  file_reply_path(id, 0, path, strlen(path));
  return -1;
}
