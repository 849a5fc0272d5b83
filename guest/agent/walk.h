/* Reading directories, and trees of them, a batch of entries at a time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of the kernel's entries that are read at once, in bytes. */
enum { WALK_BATCH_BYTES = 8 * 1024 };

/*
 * A walk reads one directory at a time. Those that are still to be read wait by
 * their paths, so that the depth of a tree costs no descriptors. Nothing is
 * followed: a directory that has become a symbolic link is passed over.
 */
struct walk {
  int root;     /* -1: none */
  int fd;       /* the directory that is being read, or -1 */
  bool silent;  /* for the caller: of the directory that is being read */
  char* prefix; /* path of that directory below the root, with a slash at its end */
  size_t prefix_bytes, prefix_size;
  char* waiting; /* of each directory: `silent`, its path, NUL, the path's length */
  size_t waiting_bytes, waiting_size;
  uint32_t begin, end; /* entries that have been read and not been taken */
  _Alignas(8) uint8_t batch[WALK_BATCH_BYTES];
};

struct walk_entry {
  const char* name; /* valid until the next call */
  size_t name_bytes;
  uint8_t type; /* DT_* */
};

/* Of a walk that is zeroed, or closed. */
void walk_init(struct walk* walk);

/* Opens the directory at `path`. Nothing is read yet: see walk_add(). Returns 0
   or an errno. */
int walk_open(struct walk* walk, const char* path);
void walk_close(struct walk* walk);

/* Has a directory read later, by its path below the root; "" is the root.
   Returns 0 or an errno. */
int walk_add(struct walk* walk, const char* path, size_t bytes, bool silent);
/* The same for an entry of the directory that is being read. */
int walk_add_entry(struct walk* walk, const struct walk_entry* entry);

enum { WALK_NEXT = -1, WALK_END = -2 };

/* Reads more entries: 0, or an errno. WALK_NEXT: the directory has no more, and
   the next one is due. */
int walk_read(struct walk* walk);
/* Goes on to the next directory: 0, or an errno. WALK_END: there is none. */
int walk_next(struct walk* walk);

/* Takes an entry, without "." and ".."; false when walk_read() is due. */
bool walk_take(struct walk* walk, struct walk_entry* entry);
