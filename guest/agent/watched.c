#include "watched.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>

enum {
  FIRST_ITEMS = 8,
  // Beyond it the answer is ENOSPC, as beyond the kernel's own limit.
  MAX_ITEMS = 16 * 1024,
};

// The first item whose number is not less.
static size_t position(const struct watched_list* list, int wd) {
  size_t low = 0;
  size_t high = list->count;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (list->items[middle].wd < wd) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

struct watched* watched_find(const struct watched_list* list, int wd) {
  const size_t at = position(list, wd);
  return at < list->count && list->items[at].wd == wd ? &list->items[at] : NULL;
}

static int grow(struct watched_list* list) {
  if (list->count < list->size) return 0;
  if (list->count >= MAX_ITEMS) return ENOSPC;
  const size_t size = list->size ? list->size * 2 : FIRST_ITEMS;
  struct watched* items = realloc(list->items, size * sizeof(*items));
  if (!items) return ENOMEM;
  list->items = items;
  list->size = size;
  return 0;
}

int watched_add(struct watched_list* list, int wd, const char* path, size_t bytes) {
  char* copy = malloc(bytes + 1);
  if (!copy) return ENOMEM;
  memcpy(copy, path, bytes);
  struct watched* there = watched_find(list, wd);
  if (there) {
    free(there->path);
    there->path = copy;
    there->bytes = bytes;
    return 0;
  }
  const int error = grow(list);
  if (error != 0) {
    free(copy);
    return error;
  }
  // Numbers rise, so that this is the end of the list.
  const size_t at = position(list, wd);
  memmove(list->items + at + 1, list->items + at, (list->count - at) * sizeof(*list->items));
  list->items[at] = (struct watched){wd, copy, bytes};
  list->count++;
  return 0;
}

void watched_remove(struct watched_list* list, int wd) {
  struct watched* item = watched_find(list, wd);
  if (!item) return;
  free(item->path);
  const size_t behind = (size_t)(list->items + list->count - item) - 1;
  memmove(item, item + 1, behind * sizeof(*item));
  list->count--;
}

static bool is_below(const struct watched* item, const char* path, size_t bytes) {
  if (item->bytes < bytes || memcmp(item->path, path, bytes) != 0) return false;
  return item->bytes == bytes || item->path[bytes] == '/';
}

void watched_forget(struct watched_list* list, int inotify_fd, const char* path, size_t bytes) {
  size_t kept = 0;
  for (size_t i = 0; i < list->count; i++) {
    if (is_below(&list->items[i], path, bytes)) {
      inotify_rm_watch(inotify_fd, list->items[i].wd);
      free(list->items[i].path);
    } else {
      list->items[kept++] = list->items[i];
    }
  }
  list->count = kept;
}

void watched_free(struct watched_list* list) {
  for (size_t i = 0; i < list->count; i++) free(list->items[i].path);
  free(list->items);
  *list = (struct watched_list){0};
}
