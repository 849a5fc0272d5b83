// forklet-park: a fork point for programs that do not have their own.
//
//   forklet-park [--] COMMAND [ARGUMENT...]
//       parks, and runs the command for each request: its standard input is the
//       request's, its output the answer. A command that fails makes the request
//       fail, with what it wrote to its standard error. FORKLET_GENERATION and
//       FORKLET_SEQUENCE are in its environment.
//   forklet-park
//       parks, and writes the input of each request to its own standard output;
//       the answer is empty.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "forklet-park.h"

extern char** environ;

static struct forklet forklet;

static void answer_error(const char* what, int error) {
  char message[256];
  const int bytes = snprintf(message, sizeof(message), "%s: %s", what, strerror(error));
  forklet_fail(&forklet, message,
               (size_t)bytes < sizeof(message) ? (size_t)bytes : sizeof(message) - 1);
}

// Returns 0 or an errno.
static int write_all(int fd, const uint8_t* bytes, size_t count) {
  while (count > 0) {
    const ssize_t n = write(fd, bytes, count);
    if (n < 0 && errno != EINTR) return errno;
    if (n > 0) {
      bytes += n;
      count -= (size_t)n;
    }
  }
  return 0;
}

// Replaces the request's data with the beginning of the file. Returns its bytes.
static size_t take(int fd) {
  size_t bytes = 0;
  ssize_t count;
  do {
    count = pread(fd, forklet_data(&forklet) + bytes, FORKLET_DATA_BYTES - bytes, (off_t)bytes);
    if (count > 0) bytes += (size_t)count;
  } while (count > 0);
  return bytes;
}

static void set_number(const char* name, const char* format, uint64_t number) {
  char text[32];
  snprintf(text, sizeof(text), format, number);
  setenv(name, text, 1);
}

// Files in memory instead of pipes: the command can neither block nor be blocked.
enum { FILES = 3 };

// Returns the wait status, or -errno.
static int run(char** command, const int files[FILES]) {
  posix_spawn_file_actions_t actions;
  pid_t pid;
  int status;
  posix_spawn_file_actions_init(&actions);
  for (int i = 0; i < FILES; i++) posix_spawn_file_actions_adddup2(&actions, files[i], i);
  const int error = posix_spawnp(&pid, command[0], &actions, NULL, command, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return -error;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return -errno;
  }
  return status;
}

static void answer(char** command, const int files[FILES]) {
  const int status = run(command, files);
  if (status < 0) {
    answer_error(command[0], -status);
    return;
  }
  if (status == 0) {
    if (lseek(files[STDOUT_FILENO], 0, SEEK_END) > FORKLET_DATA_BYTES) {
      answer_error("output of the command", EFBIG);
    } else {
      forklet_answer(&forklet, take(files[STDOUT_FILENO]));
    }
    return;
  }
  const size_t bytes = take(files[STDERR_FILENO]);
  if (bytes > 0) {
    forklet_fail(&forklet, (const char*)forklet_data(&forklet), bytes);
    return;
  }
  char message[64];
  const int length = WIFSIGNALED(status)
                         ? snprintf(message, sizeof(message), "signal %d", WTERMSIG(status))
                         : snprintf(message, sizeof(message), "exit code %d", WEXITSTATUS(status));
  forklet_fail(&forklet, message, (size_t)length);
}

static void serve(char** command, size_t bytes) {
  int files[FILES];
  int error = 0;
  for (int i = 0; i < FILES; i++) {
    files[i] = memfd_create("request", MFD_CLOEXEC);
    if (files[i] < 0) error = errno;
  }
  if (error == 0) error = write_all(files[STDIN_FILENO], forklet_data(&forklet), bytes);
  if (error == 0) {
    lseek(files[STDIN_FILENO], 0, SEEK_SET);
    set_number("FORKLET_GENERATION", "%016" PRIx64, forklet.exchange->generation);
    set_number("FORKLET_SEQUENCE", "%" PRIu64, forklet.exchange->sequence);
    answer(command, files);
  } else {
    answer_error("request", error);
  }
  for (int i = 0; i < FILES; i++) {
    if (files[i] >= 0) close(files[i]);
  }
}

static int fail(const char* what, int error) {
  fprintf(stderr, "forklet-park: %s: %s\n", what, strerror(error));
  return 1;
}

int main(int argc, char** argv) {
  char** command = argv + 1;
  if (argc > 1 && strcmp(argv[1], "--") == 0) {
    command++;
  } else if (argc > 1 && argv[1][0] == '-') {
    fprintf(stderr, "usage: forklet-park [--] [COMMAND [ARGUMENT...]]\n");
    return 2;
  }
  const int error = forklet_open(&forklet);
  if (error != 0) return fail(FORKLET_DEVICE, -error);
  for (;;) {
    const long bytes = forklet_park(&forklet);
    if (bytes < 0) return fail("parking", (int)-bytes);
    if (*command) {
      serve(command, (size_t)bytes);
      continue;
    }
    const int written = write_all(STDOUT_FILENO, forklet_data(&forklet), (size_t)bytes);
    if (written != 0) return fail("standard output", written);
    forklet_answer(&forklet, 0);
  }
}
