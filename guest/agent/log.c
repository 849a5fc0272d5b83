#include "log.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void log_error(const char* what, int error) {
  char line[256];
  const int length = snprintf(line, sizeof(line), "forklet-agent: %s: %s\n", what, strerror(error));
  if (length <= 0) return;
  const size_t bytes = (size_t)length < sizeof(line) ? (size_t)length : sizeof(line) - 1;
  int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) fd = open("/dev/console", O_WRONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return;
  // Nothing is left to report a failure to.
  const ssize_t written = write(fd, line, bytes);
  (void)written;
  close(fd);
}
