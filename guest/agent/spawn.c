#include "spawn.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "limits.h"
#include "protocol.h"
#include "users.h"

// The child runs in the agent's memory, on a stack of its own, while the agent waits. It
// must not be instrumented: sanitizers do not expect a second thread of control.
#define IN_CHILD __attribute__((no_sanitize("address", "undefined")))

enum { CHILD_STACK_BYTES = 32 * 1024 };
static _Alignas(64) char child_stack[CHILD_STACK_BYTES];

// Returns only on failure.
IN_CHILD static void execute(struct spawn* request, char* file) {
  execve(file, request->argv, request->envp);
  if (errno != ENOEXEC) return;
  // A script without #!: what execvp does.
  char* program = request->argv[0];
  request->argv[-1] = "/bin/sh";
  request->argv[0] = file;
  execve("/bin/sh", request->argv - 1, request->envp);
  request->argv[0] = program;
}

// Tries each directory of the path, and returns the most telling errno.
IN_CHILD static int execute_on_path(struct spawn* request) {
  char* name = request->argv[0];
  const size_t name_length = strlen(name);
  if (name_length == 0) return ENOENT;
  if (strchr(name, '/')) {
    execute(request, name);
    return errno;
  }
  char candidate[PATH_MAX];
  bool denied = false;
  const char* directory = request->path;
  for (;;) {
    const char* end = strchrnul(directory, ':');
    const size_t length = (size_t)(end - directory);
    // An empty directory is the current one.
    if (length + 1 + name_length < sizeof(candidate)) {
      char* at = candidate;
      if (length > 0) {
        memcpy(at, directory, length);
        at += length;
        *at++ = '/';
      }
      memcpy(at, name, name_length + 1);
      execute(request, candidate);
      if (errno == EACCES) {
        denied = true;
      } else if (errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG) {
        return errno;
      }
    }
    if (*end == 0) return denied ? EACCES : ENOENT;
    directory = end + 1;
  }
}

// By system calls alone: the wrappers of a C library have all threads of a process follow, and
// take the child for one of the agent's.
IN_CHILD static bool become(struct spawn* request) {
  const struct identity* identity = request->identity;
  request->stage = FK_STAGE_GROUPS;
  if (identity->sets_groups && syscall(SYS_setgroups, identity->count, identity->groups) < 0) {
    return false;
  }
  const gid_t gid = identity->gid;
  request->stage = FK_STAGE_GROUP;
  if (identity->sets_group && syscall(SYS_setresgid, gid, gid, gid) < 0) return false;
  // Last, since it takes the right to do the others away. From here to execve a process of the same
  // user cannot attach to this one, whose memory is the agent's: the kernel has made that memory
  // undumpable.
  const uid_t uid = identity->uid;
  request->stage = FK_STAGE_USER;
  return !identity->sets_user || syscall(SYS_setresuid, uid, uid, uid) == 0;
}

IN_CHILD static bool limit(const struct spawn* request) {
  for (size_t i = 0; i < request->limit_count; i++) {
    const struct fk_limit* wanted = &request->limits[i];
    const uint64_t values[2] = {wanted->soft, wanted->hard};
    if (syscall(SYS_prlimit64, 0, wanted->resource, values, NULL) < 0) return false;
  }
  return true;
}

// What needs the agent's rights comes first; the directory is entered, and the program looked up,
// with those of the user.
IN_CHILD static int child(void* argument) {
  struct spawn* request = argument;
  setsid();
  request->stage = FK_STAGE_SETUP;
  for (int fd = 0; fd < 3; fd++) {
    if (request->fds[fd] >= 0 && dup2(request->fds[fd], fd) < 0) goto failed;
  }
  request->stage = FK_STAGE_TERMINAL;
  if (request->terminal && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0) goto failed;
  request->stage = FK_STAGE_TREE;
  if (request->enter >= 0 && write(request->enter, "0", 1) < 0) goto failed;
  // The agent's scheduling policy is inherited; see main.c. musl's wrapper does nothing.
  const struct sched_param parameters = {0};
  syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &parameters);
  limits_restore();
  if (request->umask >= 0) umask((mode_t)request->umask);
  request->stage = FK_STAGE_LIMITS;
  // Before the user changes: the kernel then counts the user's processes against them.
  if (!limit(request)) goto failed;
  if (request->identity && !become(request)) goto failed;
  request->stage = FK_STAGE_CWD;
  if (request->cwd && chdir(request->cwd) < 0) goto failed;
  request->stage = FK_STAGE_EXECUTE;
  // No disposition needs restoring: the agent has no handler and ignores nothing.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  request->error = execute_on_path(request);
  _exit(127);
failed:
  request->error = errno;
  _exit(127);
}

// <linux/futex.h>, which musl's headers do not reach. The kernel wakes by the shared kind.
enum { FUTEX_WAIT = 0 };

enum { LOOK_MS = 100, LOOKS = 50 };

// Not the library's, which would set the errno that the child uses meanwhile.
static long bare_syscall(long number, long a, long b, long c, long d) {
  register long fourth __asm__("r10") = d;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                   : "rcx", "r11", "memory");
  return result;
}

// Waits until the child has left the agent's memory, but not for ever: once it has changed its
// user, any process of that user may stop it, and would stop the agent with it.
static void wait_until_left(pid_t pid, const int* occupied) {
  const struct timespec look = {0, LOOK_MS * 1000000L};
  int looks = 0;
  while (__atomic_load_n(occupied, __ATOMIC_ACQUIRE) != 0) {
    const long rc = bare_syscall(SYS_futex, (long)occupied, FUTEX_WAIT, 1, (long)&look);
    if (rc == -ETIMEDOUT) bare_syscall(SYS_kill, pid, ++looks < LOOKS ? SIGCONT : SIGKILL, 0, 0);
  }
}

// The child runs in the agent's memory until its execve. Returns its pid, or -1.
static pid_t clone_and_wait(struct spawn* request) {
  char* stack = child_stack + CHILD_STACK_BYTES;
  const struct identity* identity = request->identity;
  if (!identity || !identity->sets_user || identity->uid == 0) {
    return clone(child, stack, CLONE_VM | CLONE_VFORK | SIGCHLD, request);
  }
  // The kernel clears it, and wakes who waits for it.
  static int occupied;
  occupied = 1;
  const int flags = CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD;
  const pid_t pid = clone(child, stack, flags, request, NULL, NULL, &occupied);
  if (pid >= 0) wait_until_left(pid, &occupied);
  return pid;
}

pid_t spawn(struct spawn* request) {
  request->error = 0;
  const pid_t pid = clone_and_wait(request);
  if (pid < 0) {
    request->stage = FK_STAGE_SETUP;
    request->error = errno;
    return -1;
  }
  if (request->error == 0) return pid;
  siginfo_t info;
  while (waitid(P_PID, (id_t)pid, &info, WEXITED) < 0 && errno == EINTR) {
  }
  return -1;
}
