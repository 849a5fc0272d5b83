#include "limits.h"

#include <errno.h>
#include <sys/resource.h>

#include "loop.h"

static struct rlimit original;
static bool raised;

static bool raise_limit(void) {
  if (raised || getrlimit(RLIMIT_NOFILE, &original) < 0) return false;
  struct rlimit wanted = {.rlim_cur = LOOP_DESCRIPTORS, .rlim_max = original.rlim_max};
  if (wanted.rlim_max < LOOP_DESCRIPTORS) wanted.rlim_max = LOOP_DESCRIPTORS;
  if (original.rlim_cur >= LOOP_DESCRIPTORS) return false;
  raised = setrlimit(RLIMIT_NOFILE, &wanted) == 0;
  if (!raised) {
    // Not root: as far as the hard limit goes.
    wanted.rlim_cur = wanted.rlim_max = original.rlim_max;
    raised = original.rlim_cur < original.rlim_max && setrlimit(RLIMIT_NOFILE, &wanted) == 0;
  }
  return raised;
}

bool limits_retry(void) {
  if (errno != EMFILE) return false;
  const bool retry = raise_limit();
  errno = EMFILE;
  return retry;
}

void limits_restore(void) {
  if (raised) setrlimit(RLIMIT_NOFILE, &original);
}
