#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "limits.h"

// <asm/ioctls.h>; Linux 4.13. Older headers lack it.
#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

enum { LARGEST = 65535, END_OF_TRANSMISSION = 4 };

bool terminal_size_is_valid(struct terminal_size size) {
  return size.columns >= 1 && size.columns <= LARGEST && size.rows >= 1 && size.rows <= LARGEST;
}

void terminal_resize(int master, struct terminal_size size) {
  const struct winsize wanted = {.ws_col = (unsigned short)size.columns,
                                 .ws_row = (unsigned short)size.rows};
  ioctl(master, TIOCSWINSZ, &wanted);
}

static int open_master(void) {
  int fd;
  do {
    fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  } while (fd < 0 && limits_retry());
  return fd;
}

// By the master and not by its name: what is at /dev/pts is the guest's to change.
static int open_slave(int master) {
  int fd;
  do {
    fd = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  } while (fd < 0 && limits_retry());
  return fd;
}

int terminal_open(struct terminal_size size, uid_t owner, int* master, int* slave) {
  *slave = -1;
  *master = open_master();
  if (*master < 0) return errno;
  const int unlocked = 0;
  if (ioctl(*master, TIOCSPTLCK, &unlocked) == 0) *slave = open_slave(*master);
  const bool made = *slave >= 0 && (owner == 0 || fchown(*slave, owner, (gid_t)-1) == 0);
  if (made) {
    terminal_resize(*master, size);
    return 0;
  }
  const int error = errno;
  if (*slave >= 0) close(*slave);
  close(*master);
  *master = *slave = -1;
  return error;
}

bool terminal_ends_line(uint8_t byte) {
  return byte == '\n' || byte == '\r' || byte == END_OF_TRANSMISSION;
}

size_t terminal_end_of_input(int master, bool partial, uint8_t bytes[2]) {
  struct termios settings;
  const bool known = tcgetattr(master, &settings) == 0;
  const uint8_t set = known ? settings.c_cc[VEOF] : 0;
  bytes[0] = bytes[1] = set != 0 ? set : END_OF_TRANSMISSION;
  // At the end of a part of a line it only hands that over.
  return partial && known && settings.c_lflag & ICANON ? 2 : 1;
}
