#include "mounts.h"

#include <errno.h>
#include <net/if.h>
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

// In the order of the table: /dev before what is inside it. Mount first and make the directory only
// if that fails: in the guest each system call counts.
static const struct {
  const char* target;
  const char* type;
  unsigned long flags;
  const char* options;
} mounts[] = {
    {"/dev", "devtmpfs", MS_NOSUID, "mode=0755"},
    {"/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
    {"/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
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

static void mount_one(const char* target, const char* type, unsigned long flags,
                      const char* options) {
  if (mount(type, target, type, flags, options) == 0) return;
  if (errno == ENOENT && mkdir(target, 0755) == 0 &&
      mount(type, target, type, flags, options) == 0) {
    return;
  }
  // Already there, or not in this kernel.
  if (errno != EBUSY && errno != ENODEV) log_error(target, errno);
}

static void make_writable(void) {
  struct statvfs root;
  const int read_only = statvfs("/", &root) == 0 && root.f_flag & ST_RDONLY;
  for (size_t i = 0; i < sizeof(writable) / sizeof(writable[0]); i++) {
    const char* path = writable[i].path;
    if (read_only) {
      mount_one(path, "tmpfs", MS_NOSUID | MS_NODEV, writable[i].options);
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
    mount_one(mounts[i].target, mounts[i].type, mounts[i].flags, mounts[i].options);
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
