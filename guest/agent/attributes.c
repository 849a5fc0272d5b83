// What files are and whom they belong to: FK_FILE_STAT, FK_FILE_ACCESS, FK_FILE_CHMOD,
// FK_FILE_CHOWN, FK_FILE_UTIMES, FK_FILE_TRUNCATE.

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "protocol.h"
#include "records.h"

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

static int at_flags(const struct file_request* request) {
  return request->flags & FK_FILE_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0;
}

int file_stat(uint32_t id, const struct file_request* request) {
  struct kernel_statx from;
  if (syscall(SYS_statx, AT_FDCWD, request->path, at_flags(request),
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

int file_access(uint32_t id, const struct file_request* request) {
  (void)id;
  if (request->mode & ~(uint32_t)(R_OK | W_OK | X_OK)) return EPROTO;
  return access(request->path, (int)request->mode) == 0 ? 0 : errno;
}

int file_chmod(uint32_t id, const struct file_request* request) {
  (void)id;
  return chmod(request->path, request->mode & 07777) == 0 ? 0 : errno;
}

int file_chown(uint32_t id, const struct file_request* request) {
  (void)id;
  const int flags = at_flags(request);
  return fchownat(AT_FDCWD, request->path, request->user, request->group, flags) == 0 ? 0 : errno;
}

static struct timespec to_timespec(int64_t ns) {
  enum { PER_SECOND = 1000000000 };
  struct timespec time = {.tv_sec = ns / PER_SECOND, .tv_nsec = ns % PER_SECOND};
  // Before 1970: the fraction counts upwards all the same.
  if (time.tv_nsec < 0) {
    time.tv_sec--;
    time.tv_nsec += PER_SECOND;
  }
  return time;
}

int file_utimes(uint32_t id, const struct file_request* request) {
  (void)id;
  const struct timespec times[2] = {to_timespec(request->accessed_ns),
                                    to_timespec(request->modified_ns)};
  return utimensat(AT_FDCWD, request->path, times, at_flags(request)) == 0 ? 0 : errno;
}

int file_truncate(uint32_t id, const struct file_request* request) {
  (void)id;
  if (request->size > INT64_MAX) return EPROTO;
  return truncate(request->path, (off_t)request->size) == 0 ? 0 : errno;
}
