// The agent as an ordinary process, for tests on the host: it speaks the protocol on descriptor 3,
// mounts nothing, and exits when the connection is over. Never part of a guest.
//
// With a directory as its argument it first confines itself to that directory, as an unprivileged
// user, so that a fuzzer's file and exec requests reach nothing else.

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "connection.h"
#include "control.h"
#include "exec.h"
#include "log.h"
#include "loop.h"
#include "machine.h"
#include "renew.h"

enum { CONTROL_FD = 3, LOG_FD = 4, NOBODY = 65534 };

// Of the sanitizers' run-time library, where the agent is built with it.
extern void __sanitizer_set_report_fd(void* fd) __attribute__((weak));

void log_error(const char* what, int error) {
  dprintf(LOG_FD, "forklet-agent: %s: %s\n", what, strerror(error));
}

static void fail(const char* what) {
  log_error(what, errno);
  exit(1);
}

static void confine(const char* directory) {
  const struct rlimit processes = {256, 256};
  const struct rlimit file_size = {1 << 20, 1 << 20};
  if (getuid() != 0 && unshare(CLONE_NEWUSER) < 0) fail("unshare user");
  if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET) < 0) fail("unshare");
  if (chroot(directory) < 0 || chdir("/") < 0) fail(directory);
  if (setrlimit(RLIMIT_NPROC, &processes) < 0) fail("RLIMIT_NPROC");
  if (setrlimit(RLIMIT_FSIZE, &file_size) < 0) fail("RLIMIT_FSIZE");
  if (getuid() == 0 && (setgroups(0, NULL) < 0 || setgid(NOBODY) < 0 || setuid(NOBODY) < 0)) {
    fail("setuid");
  }
}

// Commands without streams get /dev/null, as in a guest, and inherit nothing else. Reports go to
// what was stderr.
static void arrange_descriptors(void) {
  if (dup3(STDERR_FILENO, LOG_FD, O_CLOEXEC) < 0) fail("stderr");
  if (__sanitizer_set_report_fd) __sanitizer_set_report_fd((void*)(intptr_t)LOG_FD);
  if (close_range(LOG_FD + 1, ~0U, 0) < 0) fail("close_range");
  if (fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC) < 0) fail("descriptor 3");
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) fail("/dev/null");
  for (int fd = 0; fd < 3; fd++) dup2(null, fd);
  close(null);
}

int main(int argc, char** argv) {
  arrange_descriptors();
  if (fcntl(CONTROL_FD, F_SETFL, O_NONBLOCK) < 0) fail("descriptor 3");
  if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) fail("subreaper");
  if (argc > 1) confine(argv[1]);
  if (loop_create() != 0 || connection_open(CONTROL_FD) != 0) fail("loop");
  control_hello();
  connection_flush();
  if (machine_open() == 0) renew_prepare();
  loop_run();
  exec_kill_all();
  return 0;
}
