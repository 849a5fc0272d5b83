/* Which directories a watch has in inotify, and under which paths. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct watched {
  int wd;     /* inotify's number */
  char* path; /* below the root of the watch, without a NUL */
  size_t bytes;
};

/* Ordered by `wd`. Starts as zeros. */
struct watched_list {
  struct watched* items;
  size_t count, size;
};

struct watched* watched_find(const struct watched_list* list, int wd);
/* One that is there gets another path. Returns 0 or an errno. */
int watched_add(struct watched_list* list, int wd, const char* path, size_t bytes);
void watched_remove(struct watched_list* list, int wd);
/* Takes a directory and everything below it out of the list and of inotify. */
void watched_forget(struct watched_list* list, int inotify_fd, const char* path, size_t bytes);
void watched_free(struct watched_list* list);
