/* Files that have several names, by what they are: which came first. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct inode {
  dev_t dev;
  ino_t ino;
  uint64_t number; /* counted from 1; 0: none */
};

struct inodes {
  struct inode* slots;
  uint32_t slot_count; /* a power of two, or 0 */
  uint32_t count;
};

/* Looks a file up and takes it in if it is new. `*number`, counted from 0, says
   which it is. Returns 0 or ENOMEM. */
int inodes_number(struct inodes* inodes, dev_t dev, ino_t ino, bool* known, uint64_t* number);
void inodes_free(struct inodes* inodes);
