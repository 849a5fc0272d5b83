/*
 * What a command costs the guest by itself: starts a program N times, one after the other, in the
 * cheapest way that there is (vfork, execve, waitpid), and prints the nanoseconds of each, a line
 * each.
 *
 *   spawn N program [argument...]
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: spawn N program [argument...]\n");
    return 2;
  }
  const long count = strtol(argv[1], NULL, 10);
  for (long i = 0; i < count; i++) {
    const long long begin = now_ns();
    const pid_t pid = vfork();
    if (pid == 0) {
      execv(argv[2], argv + 2);
      _exit(127);
    }
    int status = -1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
      fprintf(stderr, "spawn: %s failed\n", argv[2]);
      return 1;
    }
    printf("%lld\n", now_ns() - begin);
  }
  return 0;
}
