/* Starts a program with as few system calls as possible. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "protocol.h"

struct identity;

/* Where programs are looked up when an environment has no PATH. */
#define SPAWN_DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct spawn {
  /* NULL-terminated; argv[-1] is spare, for a script that needs /bin/sh. */
  char** argv;
  char** envp;
  const char* cwd;
  /* Where argv[0] is looked up when it has no slash. */
  const char* path;
  /* For stdin, stdout and stderr; -1 leaves the agent's, which is /dev/null. */
  int fds[3];
  bool terminal; /* `fds` are one, which controls the new session */
  /* Who runs it; NULL: whoever runs the agent. */
  const struct identity* identity;
  int umask; /* -1: the agent's */
  int enter; /* cgroup.procs of the cgroup to enter, -1: the agent's */
  const struct fk_limit* limits;
  size_t limit_count;

  /* Where and why it failed. */
  int stage; /* enum fk_exec_stage */
  int error; /* errno */
};

/* Returns the pid of the new session and process group leader, or -1 with
   `stage` and `error` set. */
pid_t spawn(struct spawn* request);
