#include "log.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void log_error(const char* what, int error) {
  // KERN_ERR, which a quiet console shows. It is for the log alone.
  static const char level[] = "<3>";
  char line[256];
  const int length =
      snprintf(line, sizeof(line), "%sforklet-agent: %s: %s\n", level, what, strerror(error));
  if (length <= 0) return;
  const char* start = line;
  size_t bytes = (size_t)length < sizeof(line) ? (size_t)length : sizeof(line) - 1;
  int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) {
    fd = open("/dev/console", O_WRONLY | O_CLOEXEC | O_NOCTTY);
    start += sizeof(level) - 1;
    bytes -= sizeof(level) - 1;
  }
  if (fd < 0) return;
  // Nothing is left to report a failure to.
  const ssize_t written = write(fd, start, bytes);
  (void)written;
  close(fd);
}
