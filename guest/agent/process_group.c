#include "process_group.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// Linux 6.9; older headers lack it.
#ifndef PIDFD_SIGNAL_PROCESS_GROUP
#define PIDFD_SIGNAL_PROCESS_GROUP (1u << 2)
#endif

void process_group_hold(struct process_group* group) {
  if (group->held < 0) group->held = (int)syscall(SYS_pidfd_open, group->leader, 0);
}

void process_group_release(struct process_group* group) {
  if (group->held >= 0) close(group->held);
  group->held = -1;
}

// Returns 0 or an errno.
static int send_signal(const struct process_group* group, int number) {
  if (group->held >= 0) {
    const long rc =
        syscall(SYS_pidfd_send_signal, group->held, number, NULL, PIDFD_SIGNAL_PROCESS_GROUP);
    if (rc == 0) return 0;
    // EINVAL: a kernel before 6.9. There the number has to do; pids are handed out in turn, so it
    // comes back only after all the others.
    if (errno != EINVAL) return errno;
  }
  return kill(-group->leader, number) == 0 ? 0 : errno;
}

void process_group_signal(const struct process_group* group, int number) {
  (void)send_signal(group, number);
}

// True when /proc/NAME/stat tells of a process of the group that is not dead.
static bool is_living_member(const char* name, pid_t leader) {
  char path[64];
  char text[512];
  snprintf(path, sizeof(path), "/proc/%.20s/stat", name);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const ssize_t count = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (count <= 0) return false;
  text[count] = 0;
  // pid (name) state ppid pgrp ...; the name may contain anything.
  const char* at = strrchr(text, ')');
  if (!at || strlen(at) < 5) return false;
  const char state = at[2];
  char* end;
  (void)strtol(at + 4, &end, 10);
  return strtol(end, NULL, 10) == leader && state != 'Z' && state != 'X';
}

static bool has_living_member(pid_t leader) {
  DIR* processes = opendir("/proc");
  // Without /proc nothing can be told; the caller has a deadline.
  if (!processes) return true;
  bool found = false;
  const struct dirent* entry;
  while (!found && (entry = readdir(processes))) {
    found = isdigit((unsigned char)entry->d_name[0]) && is_living_member(entry->d_name, leader);
  }
  closedir(processes);
  return found;
}

bool process_group_kill(const struct process_group* group, bool thorough) {
  const int error = send_signal(group, SIGKILL);
  if (error == ESRCH) return true;
  return thorough && !has_living_member(group->leader);
}
