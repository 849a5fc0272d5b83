#include "loop.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "connection.h"
#include "exec.h"
#include "operation.h"
#include "ports.h"
#include "renew.h"

enum { EVENTS_PER_TURN = 64 };

// Who watches which descriptor. Events carry descriptor and generation instead of a pointer, since
// closing does not always end them: a child that is just being started has copies of all
// descriptors, and closes them only after execve has let the agent go on.
static struct {
  struct watch* watch;
  uint32_t generation;
} watches[LOOP_DESCRIPTORS];

static int epoll_fd = -1;
static int child_fd = -1;
static bool children_changed;

static void child_ready(struct watch* watch, uint32_t events) {
  (void)watch;
  (void)events;
  struct signalfd_siginfo info;
  // One read suffices: SIGCHLD is not queued, and exec_reap() asks the kernel who it was.
  if (read(child_fd, &info, sizeof(info)) > 0) children_changed = true;
}

static struct watch child_watch = {child_ready};

int loop_create(void) {
  // With everything blocked, SIGPIPE included, a spawned child needs one system call to
  // restore the mask, and no disposition has to be touched at all.
  sigset_t all;
  sigfillset(&all);
  if (sigprocmask(SIG_SETMASK, &all, NULL) < 0) return errno;
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0) return errno;
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  child_fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
  if (child_fd < 0) return errno;
  return loop_add(child_fd, EPOLLIN, &child_watch);
}

static int control(int operation, int fd, uint32_t events) {
  struct epoll_event event = {.events = events};
  event.data.u64 = (uint64_t)watches[fd].generation << 32 | (uint32_t)fd;
  return epoll_ctl(epoll_fd, operation, fd, &event) < 0 ? errno : 0;
}

int loop_add(int fd, uint32_t events, struct watch* watch) {
  if (fd >= LOOP_DESCRIPTORS) return EMFILE;
  watches[fd].generation++;
  const int error = control(EPOLL_CTL_ADD, fd, events);
  if (error == 0) watches[fd].watch = watch;
  return error;
}

int loop_modify(int fd, uint32_t events) { return control(EPOLL_CTL_MOD, fd, events); }

void loop_close(int fd) {
  if (fd < LOOP_DESCRIPTORS) watches[fd].watch = NULL;
  close(fd);
}

static void dispatch(const struct epoll_event* event) {
  const uint32_t fd = (uint32_t)event->data.u64;
  const uint32_t generation = (uint32_t)(event->data.u64 >> 32);
  struct watch* watch = watches[fd].watch;
  if (watch && watches[fd].generation == generation) watch->ready(watch, event->events);
}

uint64_t loop_now_ms(void) {
  struct timespec now = {0};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

// As unsigned numbers -1, for ever, is the largest.
static int shorter(int a, int b) { return (unsigned)a < (unsigned)b ? a : b; }

static int wait_ms(void) {
  if (children_changed || operations_runnable() || connection_has_work()) return 0;
  return shorter(shorter(exec_wait_ms(), renew_wait_ms()), ports_wait_ms());
}

void loop_run(void) {
  struct epoll_event events[EVENTS_PER_TURN];
  while (connection_is_open()) {
    const int count = epoll_wait(epoll_fd, events, EVENTS_PER_TURN, wait_ms());
    for (int i = 0; i < count; i++) dispatch(&events[i]);
    connection_parse();
    // After the pipes' events: a command whose pipes and exit arrive together is answered at once.
    if (children_changed) children_changed = exec_reap();
    exec_check_cancelled();
    renew_turn();
    ports_turn();
    operations_run();
    connection_flush();
    operations_free_finished();
  }
}
