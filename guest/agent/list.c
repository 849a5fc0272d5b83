// Listing directories and trees: FK_FILE_READDIR.

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "connection.h"
#include "files.h"
#include "operation.h"
#include "output.h"
#include "protocol.h"
#include "walk.h"

enum { LONGEST_ENTRY = sizeof(struct fk_dirent) + FK_MAX_PATH };
_Static_assert(LONGEST_ENTRY <= OUTPUT_BYTES, "an entry always fits");

struct list_operation {
  struct operation operation;
  bool recursive;
  struct walk walk;
  struct output output;
};

static void finish_list(struct list_operation* list, int error) {
  walk_close(&list->walk);
  if (error == 0) output_end(&list->output, list->operation.id);
  connection_reply(list->operation.id, error);
  operation_finish(&list->operation);
}

// Returns 0 or an errno.
static int put_entry(struct list_operation* list, const struct walk_entry* entry) {
  const struct walk* walk = &list->walk;
  if (walk->prefix_bytes + entry->name_bytes > FK_MAX_PATH) return ENAMETOOLONG;
  const struct fk_dirent header = {.name_bytes = (uint16_t)(walk->prefix_bytes + entry->name_bytes),
                                   .type = entry->type};
  output_put(&list->output, &header, sizeof(header));
  output_put(&list->output, walk->prefix, walk->prefix_bytes);
  output_put(&list->output, entry->name, entry->name_bytes);
  return list->recursive && entry->type == DT_DIR ? walk_add_entry(&list->walk, entry) : 0;
}

// Fills the buffer, which is empty, reading at most once. Returns 0, an errno, or WALK_END.
static int fill(struct list_operation* list) {
  output_clear(&list->output);
  struct walk_entry entry;
  while (output_room(&list->output) >= LONGEST_ENTRY) {
    if (walk_take(&list->walk, &entry)) {
      const int error = put_entry(list, &entry);
      if (error != 0) return error;
    } else if (list->output.end > 0) {
      return 0;
    } else {
      const int state = walk_read(&list->walk);
      if (state == WALK_NEXT) return walk_next(&list->walk);
      if (state != 0) return state;
    }
  }
  return 0;
}

// Called with room for a frame of the largest size.
static void list_run(struct operation* operation) {
  struct list_operation* list = (struct list_operation*)operation;
  if (output_empty(&list->output)) {
    const int state = fill(list);
    if (state != 0) {
      finish_list(list, state == WALK_END ? 0 : state);
      return;
    }
  }
  output_send(&list->output, list->operation.id);
  // What is left waits for a window.
  if (output_empty(&list->output)) operation_schedule(operation);
}

static void list_cancel(struct operation* operation, int error) {
  finish_list((struct list_operation*)operation, error);
}

static void list_window(struct operation* operation, uint16_t stream, uint64_t limit) {
  struct list_operation* list = (struct list_operation*)operation;
  if (output_widen(&list->output, stream, limit)) operation_schedule(operation);
}

static const struct operation_type list_type = {
    .run = list_run, .cancel = list_cancel, .window = list_window};

int file_readdir(uint32_t id, const struct file_request* request) {
  struct list_operation* list = operation_new(&list_type, id, sizeof(*list));
  if (!list) return ENOMEM;
  walk_init(&list->walk);
  int error = walk_open(&list->walk, request->path);
  if (error == 0) error = walk_add(&list->walk, "", 0, false);
  if (error != 0) {
    walk_close(&list->walk);
    operation_finish(&list->operation);
    return error;
  }
  list->recursive = (request->flags & FK_FILE_RECURSIVE) != 0;
  list->output.limit = request->output_limit;
  operation_schedule(&list->operation);
  return -1;
}
