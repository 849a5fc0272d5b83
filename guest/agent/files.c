#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "connection.h"
#include "protocol.h"
#include "records.h"

static bool take_record(struct file_request* request, const struct record* record) {
  switch (record->tag) {
    case FK_TAG_PATH:
      return (request->path = record_string(record)) != NULL;
    case FK_TAG_OUTPUT_LIMIT:
      return record_u64(record, &request->output_limit);
    case FK_TAG_FLAGS:
      return record_u32(record, &request->flags);
    case FK_TAG_MODE:
      return record_u32(record, &request->mode);
    case FK_TAG_RANGE:
      if (record->length != 2 * sizeof(uint64_t)) return false;
      memcpy(&request->first, record->bytes, sizeof(uint64_t));
      memcpy(&request->count, record->bytes + sizeof(uint64_t), sizeof(uint64_t));
      return true;
    default:
      return false;
  }
}

void file_request(uint32_t id, uint32_t op, uint8_t* payload, size_t bytes) {
  static int (*const operations[])(uint32_t, const struct file_request*) = {
      [FK_FILE_READ] = file_read,   [FK_FILE_WRITE] = file_write,
      [FK_FILE_STAT] = file_stat,   [FK_FILE_READDIR] = file_readdir,
      [FK_FILE_MKDIR] = file_mkdir, [FK_FILE_REMOVE] = file_remove,
  };
  struct file_request request = {.count = UINT64_MAX, .mode = op == FK_FILE_MKDIR ? 0777 : 0666};
  struct record_reader reader = {payload, payload + bytes};
  struct record record;
  bool malformed;
  bool valid = op >= FK_FILE_READ && op <= FK_FILE_REMOVE;
  while (valid && record_next(&reader, &record, &malformed)) valid = take_record(&request, &record);
  int error = EPROTO;
  if (valid && !malformed && request.path) error = operations[op](id, &request);
  if (error >= 0) connection_reply(id, error);
}

// <sys/stat.h> of musl 1.2.3 has no statx, and <linux/stat.h> clashes with it.
struct kernel_statx_time {
  int64_t seconds;
  uint32_t nanoseconds;
  int32_t reserved;
};
struct kernel_statx {
  uint32_t mask, blksize;
  uint64_t attributes;
  uint32_t nlink, uid, gid;
  uint16_t mode, spare0;
  uint64_t ino, size, blocks, attributes_mask;
  struct kernel_statx_time atime, btime, ctime, mtime;
  uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
  uint64_t more[14];
};
_Static_assert(sizeof(struct kernel_statx) == 256, "kernel ABI");
enum { KERNEL_STATX_BASIC_STATS = 0x7ff, KERNEL_STATX_BTIME = 0x800 };

static int64_t nanoseconds(const struct kernel_statx_time* time) {
  int64_t result;
  // Times beyond the year 2262 do not fit; the nearest that does stands for them.
  if (__builtin_mul_overflow(time->seconds, INT64_C(1000000000), &result) ||
      __builtin_add_overflow(result, (int64_t)time->nanoseconds, &result)) {
    return time->seconds < 0 ? INT64_MIN : INT64_MAX;
  }
  return result;
}

int file_stat(uint32_t id, const struct file_request* request) {
  if (request->flags & ~(uint32_t)FK_FILE_NOFOLLOW) return EPROTO;
  struct kernel_statx from;
  const int flags = request->flags & FK_FILE_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0;
  if (syscall(SYS_statx, AT_FDCWD, request->path, flags,
              KERNEL_STATX_BASIC_STATS | KERNEL_STATX_BTIME, &from) < 0) {
    return errno;
  }
  const struct fk_stat stat = {
      .dev = makedev(from.dev_major, from.dev_minor),
      .ino = from.ino,
      .nlink = from.nlink,
      .rdev = makedev(from.rdev_major, from.rdev_minor),
      .size = from.size,
      .blocks = from.blocks,
      .atime_ns = nanoseconds(&from.atime),
      .mtime_ns = nanoseconds(&from.mtime),
      .ctime_ns = nanoseconds(&from.ctime),
      .birthtime_ns = nanoseconds(from.mask & KERNEL_STATX_BTIME ? &from.btime : &from.ctime),
      .mode = from.mode,
      .uid = from.uid,
      .gid = from.gid,
      .blksize = from.blksize,
  };
  uint8_t payload[sizeof(struct fk_record) + sizeof(stat)];
  record_put(payload, FK_TAG_STAT, &stat, sizeof(stat));
  const struct fk_header header = {.payload_bytes = sizeof(payload), .type = FK_REPLY, .id = id};
  connection_send(&header, payload);
  return -1;
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
  if (request->flags & ~(uint32_t)FK_FILE_RECURSIVE) return EPROTO;
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
