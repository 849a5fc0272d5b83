#include "mounts.h"

#include <errno.h>
#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "log.h"

// In this order: /dev before what is inside it. Where the directory is usually there, mounting is
// tried before making it: in the guest each system call counts.
static const struct mount_point {
  const char* target;
  const char* type;
  unsigned long flags;
  const char* options;
  bool missing; /* in a fresh devtmpfs */
} mounts[] = {
    {"/dev", "devtmpfs", MS_NOSUID, "mode=0755", false},
    {"/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, false},
    {"/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, false},
    {"/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", true},
    {"/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777", true},
    {"/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, false},
};

static const struct {
  const char* target;
  const char* path;
} links[] = {
    {"/proc/self/fd", "/dev/fd"},
    {"fd/0", "/dev/stdin"},
    {"fd/1", "/dev/stdout"},
    {"fd/2", "/dev/stderr"},
};

// Directories that programs write to. On a root that cannot be written they become file systems of
// their own.
static const struct {
  const char* path;
  mode_t mode;
  const char* options;
} writable[] = {
    {"/tmp", 01777, "mode=1777"},
    {"/run", 0755, "mode=0755"},
};

static bool try_mount(const struct mount_point* point) {
  return mount(point->type, point->target, point->type, point->flags, point->options) == 0;
}

static void mount_one(const struct mount_point* point) {
  if (point->missing) mkdir(point->target, 0755);
  if (try_mount(point)) return;
  if (errno == ENOENT && !point->missing && mkdir(point->target, 0755) == 0 && try_mount(point)) {
    return;
  }
  // Already there, or not in this kernel.
  if (errno != EBUSY && errno != ENODEV) log_error(point->target, errno);
}

static void make_writable(void) {
  struct statvfs root;
  const bool read_only = statvfs("/", &root) == 0 && root.f_flag & ST_RDONLY;
  for (size_t i = 0; i < sizeof(writable) / sizeof(writable[0]); i++) {
    const char* path = writable[i].path;
    if (read_only) {
      const struct mount_point point = {path, "tmpfs", MS_NOSUID | MS_NODEV, writable[i].options,
                                        false};
      mount_one(&point);
    } else if (mkdir(path, writable[i].mode) == 0) {
      // Regardless of the umask.
      chmod(path, writable[i].mode);
    } else if (errno != EEXIST) {
      log_error(path, errno);
    }
  }
}

void mounts_create(void) {
  for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
    mount_one(&mounts[i]);
  }
  for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
    if (symlink(links[i].target, links[i].path) < 0 && errno != EEXIST) {
      log_error(links[i].path, errno);
    }
  }
  make_writable();
}

void loopback_up(void) {
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    log_error("loopback", errno);
    return;
  }
  // The kernel adds 127.0.0.1/8 and ::1/128 by itself when the interface comes up.
  struct ifreq request = {.ifr_flags = IFF_UP | IFF_RUNNING};
  memcpy(request.ifr_name, "lo", sizeof("lo"));
  if (ioctl(fd, SIOCSIFFLAGS, &request) < 0) log_error("loopback", errno);
  close(fd);
}
