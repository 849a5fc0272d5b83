/* Making the entries of a tree: what FK_FILE_UNPACK does with them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"
#include "trail.h"

/*
 * Entries are made in the directory that is open, by their names alone, and no
 * symbolic link is followed: programs of the guest may put them in the way, and
 * the agent is root.
 */
struct place {
  struct trail trail;
  const char* path; /* of the top */
  int top;          /* the same directory, -1: none */
  mode_t mask;      /* the agent's umask */
  /* The file that is being written, -1: none. */
  int file;
  mode_t mode;
  struct timespec times[2];
  uint64_t written; /* the end of what it has */
  /* Paths below the top of files that may get further names, each with a NUL,
     and where each begins. */
  char* names;
  uint32_t* begins;
  uint32_t names_bytes, names_room, links, links_room;
};

void place_init(struct place* place, const char* path);
/* A file that is not complete is removed. */
void place_close(struct place* place);

/* Each returns 0 or an errno. The entry has been named in the trail. */
int place_directory(struct place* place, const struct fk_tree_entry* entry);
int place_leave(struct place* place);
int place_file(struct place* place, const struct fk_tree_entry* entry);
int place_bytes(struct place* place, uint64_t offset, const uint8_t* bytes, size_t count);
int place_file_end(struct place* place, uint64_t size);
int place_symlink(struct place* place, const struct fk_tree_entry* entry, const char* target);
int place_link(struct place* place, uint64_t number);
