#include "hooks.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "loop.h"
#include "machine.h"
#include "process_group.h"
#include "protocol.h"
#include "records.h"
#include "spawn.h"

static const char directory[] = "/etc/forklet/fork.d";

static uint64_t generation;
static bool again; /* for another generation than the running hook was started for */

// What is left: names[next, count).
static struct dirent** names;
static int count;
static int next;

static struct process_group running = {.leader = 0, .held = -1};
static char running_name[NAME_MAX + 1];
static uint64_t deadline_ms;

static struct {
  int error;
  char name[NAME_MAX + 1]; /* empty: the directory could not be read */
  int code, status;        /* of siginfo; code 0: it did not come to an exit */
} failure;

static void failed(int error, const char* name, int code, int status) {
  if (failure.error != 0) return;
  failure.error = error;
  snprintf(failure.name, sizeof(failure.name), "%s", name);
  failure.code = code;
  failure.status = status;
}

// True when it runs; otherwise it is none, or has failed.
static bool start(const char* name) {
  char path[PATH_MAX];
  snprintf(path, sizeof(path), "%s%s/%s", machine_root(), directory, name);
  struct stat status;
  if (stat(path, &status) < 0 || !S_ISREG(status.st_mode) || !(status.st_mode & 0111)) return false;
  char variable[64];
  snprintf(variable, sizeof(variable), "FORKLET_GENERATION=%016" PRIx64, generation);
  char search_path[] = "PATH=" SPAWN_DEFAULT_PATH;
  char* argv[] = {NULL, path, NULL};
  char* envp[] = {search_path, variable, NULL};
  struct spawn request = {.argv = argv + 1, .envp = envp, .cwd = "/", .fds = {-1, -1, -1}};
  running.leader = spawn(&request);
  if (running.leader < 0) {
    running.leader = 0;
    failed(request.error, name, 0, 0);
    return false;
  }
  snprintf(running_name, sizeof(running_name), "%s", name);
  deadline_ms = loop_now_ms() + FK_HOOK_TIMEOUT_MS;
  return true;
}

static void free_names(void) {
  for (int i = 0; i < count; i++) free(names[i]);
  free(names);
  names = NULL;
  count = next = 0;
}

static void start_next(void) {
  while (next < count) {
    if (start(names[next++]->d_name)) return;
  }
  free_names();
}

static int is_visible(const struct dirent* entry) { return entry->d_name[0] != '.'; }

static int by_name(const struct dirent** a, const struct dirent** b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

static void start_first(void) {
  again = false;
  failure.error = 0;
  free_names();
  char path[PATH_MAX];
  snprintf(path, sizeof(path), "%s%s", machine_root(), directory);
  count = scandir(path, &names, is_visible, by_name);
  if (count < 0) {
    count = 0;
    if (errno != ENOENT && errno != ENOTDIR) failed(errno, "", 0, 0);
  }
  start_next();
}

void hooks_start(uint64_t new_generation) {
  generation = new_generation;
  again = running.leader > 0;
  if (!again) start_first();
}

static void go_on(void) {
  running.leader = 0;
  if (again) {
    start_first();
  } else {
    start_next();
  }
}

bool hooks_are_done(void) { return running.leader == 0; }

bool hooks_exited(const siginfo_t* info) {
  if (info->si_pid != running.leader) return false;
  if (info->si_code != CLD_EXITED || info->si_status != 0) {
    failed(EIO, running_name, info->si_code, info->si_status);
  }
  go_on();
  return true;
}

void hooks_check_deadline(void) {
  if (running.leader == 0 || loop_now_ms() < deadline_ms) return;
  // Whoever it is, it is reaped like any orphan.
  process_group_signal(&running, SIGKILL);
  failed(ETIMEDOUT, running_name, 0, 0);
  go_on();
}

int hooks_wait_ms(void) {
  if (running.leader == 0) return -1;
  const uint64_t now = loop_now_ms();
  return deadline_ms > now ? (int)(deadline_ms - now) : 0;
}

int hooks_error(void) { return failure.error; }

uint8_t* hooks_put_failure(uint8_t* at) {
  at = record_put(at, FK_TAG_HOOK, failure.name, strlen(failure.name));
  if (failure.code == 0) return at;
  const uint16_t tag = failure.code == CLD_EXITED ? FK_TAG_EXIT_CODE : FK_TAG_SIGNAL;
  return record_put_u32(at, tag, (uint32_t)failure.status);
}
