// The guest agent: PID 1 of the guest. Prepares what a Linux program expects, dials the host, and
// serves its requests until the connection is over; then the machine has no purpose any more.

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "connection.h"
#include "control.h"
#include "log.h"
#include "loop.h"
#include "machine.h"
#include "modules.h"
#include "mounts.h"
#include "protocol.h"
#include "renew.h"

// <linux/vm_sockets.h>, which musl's headers do not reach.
struct vsock_address {
  sa_family_t family;
  uint16_t reserved;
  uint32_t port;
  uint32_t cid;
  uint8_t zero[4];
};
_Static_assert(sizeof(struct vsock_address) == sizeof(struct sockaddr), "kernel ABI");
enum { HOST_CID = 2 };

enum {
  // The driver may come up, and the host begin to listen, a little later than this program.
  DIAL_ATTEMPTS = 100,
  DIAL_PAUSE_MS = 20,
  DIAL_TIMEOUT_MS = 5000,
};

static void pause_ms(long ms) {
  const struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&pause, NULL);
}

// Without /dev/console in the root the kernel starts PID 1 with nothing at 0 to 2, which are for
// /dev/null.
static int vsock_above_stdio(void) {
  const int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0 || fd > STDERR_FILENO) return fd;
  const int above = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  close(fd);
  return above;
}

// Begins to connect, so that the host's answer is under way while the mounts are made.
static int dial(void) {
  const struct vsock_address host = {.family = AF_VSOCK, .port = FK_CONTROL_PORT, .cid = HOST_CID};
  const int fd = vsock_above_stdio();
  if (fd < 0) return -1;
  if (connect(fd, (const struct sockaddr*)&host, sizeof(host)) == 0 || errno == EINPROGRESS) {
    return fd;
  }
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

// Waits for the connection. Returns 0 or an errno.
static int wait_connected(int fd) {
  struct pollfd wait = {.fd = fd, .events = POLLOUT};
  const int count = poll(&wait, 1, DIAL_TIMEOUT_MS);
  if (count < 0) return errno;
  if (count == 0) return ETIMEDOUT;
  if (!(wait.revents & (POLLERR | POLLHUP))) return 0;
  int error = 0;
  socklen_t length = sizeof(error);
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0) return errno;
  return error != 0 ? error : ECONNRESET;
}

static int connect_to_host(int fd) {
  int error = fd < 0 ? errno : wait_connected(fd);
  for (int attempt = 1; error != 0 && attempt < DIAL_ATTEMPTS; attempt++) {
    if (fd >= 0) close(fd);
    pause_ms(DIAL_PAUSE_MS);
    fd = dial();
    error = fd < 0 ? errno : wait_connected(fd);
  }
  if (error == 0) return fd;
  log_error("cannot reach the host over vsock", error);
  if (fd >= 0) close(fd);
  return -1;
}

// Commands inherit these where no stream was asked for.
static void open_null(void) {
  const int fd = open("/dev/null", O_RDWR);
  if (fd < 0) {
    log_error("/dev/null", errno);
    return;
  }
  for (int target = 0; target < 3; target++) {
    if (target != fd) dup2(fd, target);
  }
  if (fd > 2) close(fd);
}

// A kernel of the caller's may have its drivers as modules. One that has them built in, such as
// ours, is not made to look for any.
static int dial_early(void) {
  const int fd = dial();
  if (fd >= 0) return fd;
  modules_load();
  return dial();
}

static void serve(void) {
  const int early = dial_early();
  mounts_create();
  open_null();
  loopback_up();
  machine_run_last();
  int error = loop_create();
  if (error != 0) {
    log_error("event loop", error);
    return;
  }
  const int fd = connect_to_host(early);
  if (fd < 0) return;
  error = connection_open(fd);
  if (error != 0) {
    log_error("control connection", error);
    return;
  }
  control_hello();
  connection_flush();
  // Nobody waits for this.
  renew_prepare();
  loop_run();
}

int main(void) {
  if (getpid() != 1) {
    static const char message[] = "forklet-agent: runs as PID 1 of a guest only\n";
    return write(STDERR_FILENO, message, sizeof(message) - 1) < 0 ? 2 : 1;
  }
  serve();
  // Whatever happened, PID 1 must not return: that would be a kernel panic.
  for (;;) {
    reboot(RB_POWER_OFF);
    pause_ms(1000);
  }
}
