#include "modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"

static const char directory_path[] = "/.forklet/modules";

enum {
  // <linux/module.h>, which musl's headers do not reach.
  INIT_COMPRESSED_FILE = 4,
  ORDER_BYTES = 4096,
};

static bool ends_with(const char* text, const char* end) {
  const size_t length = strlen(text);
  const size_t end_length = strlen(end);
  return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static void load(int directory, const char* name) {
  const int file = openat(directory, name, O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    log_error(name, errno);
    return;
  }
  // The kernel unpacks modules of the format that it was itself built with.
  const int flags = ends_with(name, ".ko") ? 0 : INIT_COMPRESSED_FILE;
  // Present already: somebody was quicker, a modprobe of the root for example.
  if (syscall(SYS_finit_module, file, "", flags) < 0 && errno != EEXIST) log_error(name, errno);
  close(file);
}

// Reads the names, one a line; returns the length of the text, or -1.
static ssize_t read_order(int directory, char* text, size_t room) {
  const int file = openat(directory, "order", O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  const ssize_t length = read(file, text, room);
  close(file);
  return length;
}

void modules_load(void) {
  const int directory = open(directory_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) {
    if (errno != ENOENT) log_error(directory_path, errno);
    return;
  }
  char order[ORDER_BYTES + 1];
  const ssize_t length = read_order(directory, order, ORDER_BYTES);
  if (length < 0) {
    log_error("order of the modules", errno);
  } else {
    order[length] = '\0';
    char* rest = NULL;
    for (char* name = strtok_r(order, "\n", &rest); name; name = strtok_r(NULL, "\n", &rest)) {
      load(directory, name);
    }
  }
  close(directory);
}
