#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "connection.h"
#include "limits.h"
#include "protocol.h"
#include "records.h"

// Two integers of `size` bytes each.
static bool take_pair(const struct record* record, void* first, void* second, size_t size) {
  if (record->length != 2 * size) return false;
  memcpy(first, record->bytes, size);
  memcpy(second, record->bytes + size, size);
  return true;
}

static bool take_record(struct file_request* request, const struct record* record) {
  if (record->tag < 32) request->given |= 1u << record->tag;
  switch (record->tag) {
    case FK_TAG_PATH:
      return (request->path = record_string(record)) != NULL;
    case FK_TAG_DESTINATION:
      return (request->destination = record_string(record)) != NULL;
    case FK_TAG_OUTPUT_LIMIT:
      return record_u64(record, &request->output_limit);
    case FK_TAG_FLAGS:
      return record_u32(record, &request->flags);
    case FK_TAG_MODE:
      return record_u32(record, &request->mode);
    case FK_TAG_SIZE:
      return record_u64(record, &request->size);
    case FK_TAG_RANGE:
      return take_pair(record, &request->first, &request->count, sizeof(uint64_t));
    case FK_TAG_OWNER:
      return take_pair(record, &request->user, &request->group, sizeof(uint32_t));
    case FK_TAG_TIMES:
      return take_pair(record, &request->accessed_ns, &request->modified_ns, sizeof(int64_t));
    default:
      return false;
  }
}

// By enum fk_file_op.
static const struct {
  int (*start)(uint32_t, const struct file_request*);
  uint32_t needs; /* records, a bit for each enum fk_tag */
  uint32_t flags; /* that it knows */
} operations[] = {
    [FK_FILE_READ] = {file_read, 1u << FK_TAG_PATH, 0},
    [FK_FILE_WRITE] = {file_write, 1u << FK_TAG_PATH,
                       FK_FILE_APPEND | FK_FILE_EXCLUSIVE | FK_FILE_UPDATE | FK_FILE_ATOMIC},
    [FK_FILE_STAT] = {file_stat, 1u << FK_TAG_PATH, FK_FILE_NOFOLLOW},
    [FK_FILE_READDIR] = {file_readdir, 1u << FK_TAG_PATH, FK_FILE_RECURSIVE},
    [FK_FILE_MKDIR] = {file_mkdir, 1u << FK_TAG_PATH, FK_FILE_RECURSIVE},
    [FK_FILE_REMOVE] = {file_remove, 1u << FK_TAG_PATH, FK_FILE_RECURSIVE | FK_FILE_FORCE},
    [FK_FILE_RENAME] = {file_rename, 1u << FK_TAG_PATH | 1u << FK_TAG_DESTINATION, 0},
    [FK_FILE_LINK] = {file_link, 1u << FK_TAG_PATH | 1u << FK_TAG_DESTINATION, 0},
    [FK_FILE_SYMLINK] = {file_symlink, 1u << FK_TAG_PATH | 1u << FK_TAG_DESTINATION, 0},
    [FK_FILE_READLINK] = {file_readlink, 1u << FK_TAG_PATH, 0},
    [FK_FILE_REALPATH] = {file_realpath, 1u << FK_TAG_PATH, 0},
    [FK_FILE_ACCESS] = {file_access, 1u << FK_TAG_PATH | 1u << FK_TAG_MODE, 0},
    [FK_FILE_CHMOD] = {file_chmod, 1u << FK_TAG_PATH | 1u << FK_TAG_MODE, 0},
    [FK_FILE_CHOWN] = {file_chown, 1u << FK_TAG_PATH | 1u << FK_TAG_OWNER, FK_FILE_NOFOLLOW},
    [FK_FILE_UTIMES] = {file_utimes, 1u << FK_TAG_PATH | 1u << FK_TAG_TIMES, FK_FILE_NOFOLLOW},
    [FK_FILE_TRUNCATE] = {file_truncate, 1u << FK_TAG_PATH | 1u << FK_TAG_SIZE, 0},
    [FK_FILE_COPY] = {file_copy, 1u << FK_TAG_PATH | 1u << FK_TAG_DESTINATION, FK_FILE_EXCLUSIVE},
    [FK_FILE_WATCH] = {file_watch, 1u << FK_TAG_PATH, FK_FILE_RECURSIVE},
    [FK_FILE_UNPACK] = {file_unpack, 1u << FK_TAG_PATH, 0},
    [FK_FILE_PACK] = {file_pack, 1u << FK_TAG_PATH, 0},
};

static int start(uint32_t id, uint32_t op, uint8_t* payload, size_t bytes) {
  if (op >= sizeof(operations) / sizeof(operations[0]) || !operations[op].start) return EPROTO;
  struct file_request request = {.count = UINT64_MAX, .mode = op == FK_FILE_MKDIR ? 0777 : 0666};
  struct record_reader reader = {payload, payload + bytes};
  struct record record;
  bool malformed;
  while (record_next(&reader, &record, &malformed)) {
    if (!take_record(&request, &record)) return EPROTO;
  }
  const uint32_t needs = operations[op].needs;
  if (malformed || (request.given & needs) != needs) return EPROTO;
  if (request.flags & ~operations[op].flags) return EPROTO;
  return operations[op].start(id, &request);
}

void file_request(uint32_t id, uint32_t op, uint8_t* payload, size_t bytes) {
  const int error = start(id, op, payload, bytes);
  if (error >= 0) connection_reply(id, error);
}

int file_open(const char* path, int flags, mode_t mode) {
  return file_open_at(AT_FDCWD, path, flags, mode);
}

int file_open_at(int directory, const char* path, int flags, mode_t mode) {
  int fd;
  do {
    // Devices and FIFOs must not hold the loop up, nor become anybody's terminal.
    fd = openat(directory, path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, mode);
  } while (fd < 0 && limits_retry());
  return fd;
}

// The directory exists after this, or the errno says why not.
static int make_directory(const char* path, mode_t mode) {
  if (mkdir(path, mode) == 0) return 0;
  if (errno != EEXIST) return errno;
  struct stat existing;
  if (stat(path, &existing) == 0 && S_ISDIR(existing.st_mode)) return 0;
  return EEXIST;
}

int file_mkdir(uint32_t id, const struct file_request* request) {
  (void)id;
  char* path = request->path;
  const mode_t mode = request->mode & 07777;
  if (!(request->flags & FK_FILE_RECURSIVE)) return mkdir(path, mode) == 0 ? 0 : errno;
  int error = make_directory(path, mode);
  if (error != ENOENT || *path == 0) return error;
  // Parents are missing: make what is not there, from the top.
  for (char* slash = path + 1; (slash = strchr(slash, '/')); slash++) {
    *slash = 0;
    error = make_directory(path, mode);
    *slash = '/';
    if (error != 0) return error == EEXIST ? ENOTDIR : error;
  }
  return make_directory(path, mode);
}
