#include "inodes.h"

#include <errno.h>
#include <stdlib.h>

enum {
  FIRST_SLOTS = 64,
  // 6 MiB, for 131,072 files with further names.
  MAX_SLOTS = 256 * 1024,
};

static struct inode* find(const struct inodes* inodes, dev_t dev, ino_t ino) {
  const uint32_t mask = inodes->slot_count - 1;
  uint32_t at = (uint32_t)((ino ^ dev) * UINT64_C(0x9e3779b97f4a7c15) >> 32) & mask;
  for (;; at = (at + 1) & mask) {
    struct inode* inode = &inodes->slots[at];
    if (inode->number == 0 || (inode->dev == dev && inode->ino == ino)) return inode;
  }
}

// Keeps at least half of the slots free.
static int grow(struct inodes* inodes) {
  if (2 * inodes->count < inodes->slot_count) return 0;
  struct inodes larger = {.slot_count = inodes->slot_count ? 2 * inodes->slot_count : FIRST_SLOTS,
                          .count = inodes->count};
  if (larger.slot_count > MAX_SLOTS) return ENOMEM;
  larger.slots = calloc(larger.slot_count, sizeof(*larger.slots));
  if (!larger.slots) return ENOMEM;
  for (uint32_t i = 0; i < inodes->slot_count; i++) {
    const struct inode* inode = &inodes->slots[i];
    if (inode->number != 0) *find(&larger, inode->dev, inode->ino) = *inode;
  }
  free(inodes->slots);
  *inodes = larger;
  return 0;
}

int inodes_number(struct inodes* inodes, dev_t dev, ino_t ino, bool* known, uint64_t* number) {
  const int error = grow(inodes);
  if (error != 0) return error;
  struct inode* inode = find(inodes, dev, ino);
  *known = inode->number != 0;
  if (!*known) *inode = (struct inode){dev, ino, ++inodes->count};
  *number = inode->number - 1;
  return 0;
}

void inodes_free(struct inodes* inodes) {
  free(inodes->slots);
  *inodes = (struct inodes){0};
}
