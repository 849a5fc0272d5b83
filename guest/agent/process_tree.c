#include "process_tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "limits.h"

// <linux/magic.h>, which musl's headers do not reach.
#define CGROUP2_SUPER_MAGIC 0x63677270

#define ROOT "/sys/fs/cgroup"
#define PARENT ROOT "/forklet"

enum {
  PATH_BYTES = 96,
  // Names that a program of the guest may have taken before.
  NAME_ATTEMPTS = 16,
  // Looks at what lingers, each time that a process is reaped or a command starts.
  SWEPT_PER_TURN = 4,
};

// What has outlived its command, the one to be looked at next first.
struct lingering {
  struct lingering* next;
  uint64_t number;
};
static struct lingering* first;
static struct lingering** last = &first;

static uint64_t last_number;

static void name_path(char path[PATH_BYTES], uint64_t number, const char* file) {
  snprintf(path, PATH_BYTES, PARENT "/%llu%s", (unsigned long long)number, file);
}

// Returns 0 or an errno.
static int make_parent(void) {
  struct statfs root;
  if (statfs(ROOT, &root) < 0 || root.f_type != CGROUP2_SUPER_MAGIC) return EOPNOTSUPP;
  return mkdir(PARENT, 0755) < 0 && errno != EEXIST ? errno : 0;
}

// Returns 0 or an errno.
static int make_directory(struct process_tree* tree) {
  char path[PATH_BYTES];
  int error = EEXIST;
  for (int i = 0; i < NAME_ATTEMPTS && error == EEXIST; i++) {
    tree->number = ++last_number;
    name_path(path, tree->number, "");
    error = mkdir(path, 0755) < 0 ? errno : 0;
    if (error != ENOENT) continue;
    error = make_parent();
    if (error == 0 && mkdir(path, 0755) < 0) error = errno;
  }
  return error;
}

static int open_file(const struct process_tree* tree, const char* file) {
  char path[PATH_BYTES];
  name_path(path, tree->number, file);
  int fd;
  do {
    fd = open(path, O_WRONLY | O_CLOEXEC);
  } while (fd < 0 && limits_retry());
  return fd;
}

static bool remove_directory(uint64_t number) {
  char path[PATH_BYTES];
  name_path(path, number, "");
  return rmdir(path) == 0 || errno == ENOENT;
}

int process_tree_create(struct process_tree* tree, int* enter) {
  process_tree_sweep();
  int error = make_directory(tree);
  if (error != 0) {
    tree->number = 0;
    return error;
  }
  tree->kill = open_file(tree, "/cgroup.kill");
  *enter = tree->kill < 0 ? -1 : open_file(tree, "/cgroup.procs");
  if (*enter >= 0) return 0;
  // A kernel before 5.14 has no cgroup.kill.
  error = errno == ENOENT ? EOPNOTSUPP : errno;
  process_tree_release(tree);
  return error;
}

void process_tree_signal_kill(const struct process_tree* tree) {
  if (tree->number == 0) return;
  const ssize_t count = write(tree->kill, "1", 1);
  (void)count;
}

static bool is_populated(const struct process_tree* tree) {
  char path[PATH_BYTES];
  name_path(path, tree->number, "/cgroup.events");
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  // Without it nothing can be told, unless the whole cgroup has gone; the caller has a deadline.
  if (fd < 0) return errno != ENOENT;
  char text[256];
  const ssize_t count = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (count < 0) return true;
  text[count] = 0;
  return strstr(text, "populated 1") != NULL;
}

bool process_tree_kill(const struct process_tree* tree) {
  if (tree->number == 0) return true;
  process_tree_signal_kill(tree);
  return !is_populated(tree);
}

static void linger(struct lingering* entry) {
  entry->next = NULL;
  *last = entry;
  last = &entry->next;
}

void process_tree_release(struct process_tree* tree) {
  if (tree->number == 0) return;
  if (tree->kill >= 0) close(tree->kill);
  if (!remove_directory(tree->number)) {
    struct lingering* entry = malloc(sizeof(*entry));
    // Without memory it stays.
    if (entry) {
      entry->number = tree->number;
      linger(entry);
    }
  }
  tree->number = 0;
}

void process_tree_sweep(void) {
  for (int i = 0; i < SWEPT_PER_TURN && first; i++) {
    struct lingering* entry = first;
    first = entry->next;
    if (!first) last = &first;
    if (remove_directory(entry->number)) {
      free(entry);
    } else {
      linger(entry);
    }
  }
}
