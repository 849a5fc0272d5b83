// Trees from the host: FK_FILE_UNPACK.

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "backlog.h"
#include "connection.h"
#include "files.h"
#include "operation.h"
#include "place.h"
#include "protocol.h"

enum {
  // What the host may be ahead, in bytes; what has not been looked at waits here.
  WINDOW = 512 * 1024,
  // Made in one turn: an entry takes the guest's kernel some ten thousand instructions.
  ENTRIES_PER_TURN = 8,
  BYTES_PER_TURN = 64 * 1024,
  PAGE_BYTES = 4096,
  MAX_MODE = 01777,
};
_Static_assert(WINDOW >= FK_INPUT_WINDOW, "what may follow the request at once");

struct unpack_operation {
  struct operation operation;
  struct place place;
  bool begun, complete; /* the first entry, END has been read */
  bool end;             /* FK_END has come */
  uint64_t received, granted;
  struct backlog backlog; /* not looked at yet */
  /* Of the file that is being written: its size, the end of its last run, and
     what is to come of that. */
  uint64_t size, at;
  uint32_t run_left;
  char path[];
};

static void finish_unpack(struct unpack_operation* unpack, int error, bool named) {
  const struct trail* trail = &unpack->place.trail;
  if (error != 0 && named && trail->entry_bytes > 0) {
    file_reply_path(unpack->operation.id, error, trail->path, trail->entry_bytes);
  } else {
    connection_reply(unpack->operation.id, error);
  }
  place_close(&unpack->place);
  backlog_clear(&unpack->backlog);
  operation_finish(&unpack->operation);
}

// Besides 0 and errno: more input is needed.
enum { MORE = -1 };

static const uint8_t* take(struct unpack_operation* unpack, size_t bytes) {
  const uint8_t* at = backlog_first(&unpack->backlog);
  backlog_take(&unpack->backlog, bytes);
  return at;
}

static bool is_name(const uint8_t* name, size_t bytes) {
  if (bytes == 0 || bytes > FK_MAX_NAME) return false;
  if (memchr(name, 0, bytes) || memchr(name, '/', bytes)) return false;
  return bytes > 2 || name[0] != '.' || name[bytes - 1] != '.';
}

// Whether an entry may stand here, as far as its fixed part says.
static bool makes_sense(const struct unpack_operation* unpack, const struct fk_tree_entry* entry) {
  const bool top = !unpack->begun;
  const bool inside = unpack->place.trail.depth > 0;
  if (entry->flags & ~(entry->type == FK_TREE_FILE ? FK_TREE_LINKED : 0u)) return false;
  if (entry->mode > MAX_MODE) return false;
  switch (entry->type) {
    case FK_TREE_DIRECTORY:
      return (top || inside) && entry->size == 0;
    case FK_TREE_FILE:
      return (top || inside) && entry->size <= INT64_MAX;
    case FK_TREE_SYMLINK:
      return inside && entry->size >= 1 && entry->size <= FK_MAX_PATH;
    case FK_TREE_LINK:
      return inside;
    case FK_TREE_LEAVE:
      return inside && entry->name_bytes == 0;
    case FK_TREE_END:
      return !top && !inside && entry->name_bytes == 0;
    default:
      return false;
  }
}

static int place_entry(struct unpack_operation* unpack, const struct fk_tree_entry* entry,
                       const uint8_t* target) {
  struct place* place = &unpack->place;
  switch (entry->type) {
    case FK_TREE_DIRECTORY:
      return place_directory(place, entry);
    case FK_TREE_FILE: {
      unpack->size = entry->size;
      unpack->at = 0;
      const int error = place_file(place, entry);
      return error != 0 || entry->size > 0 ? error : place_file_end(place, 0);
    }
    case FK_TREE_SYMLINK: {
      char text[FK_MAX_PATH + 1];
      memcpy(text, target, entry->size);
      text[entry->size] = 0;
      return place_symlink(place, entry, text);
    }
    case FK_TREE_LINK:
      return place_link(place, entry->size);
    case FK_TREE_LEAVE:
      return place_leave(place);
    default:
      unpack->complete = true;
      return 0;
  }
}

static int read_entry(struct unpack_operation* unpack) {
  struct fk_tree_entry entry;
  const size_t waiting = backlog_length(&unpack->backlog);
  if (waiting < sizeof(entry)) return MORE;
  memcpy(&entry, backlog_first(&unpack->backlog), sizeof(entry));
  if (!makes_sense(unpack, &entry)) return EPROTO;
  const size_t target_bytes = entry.type == FK_TREE_SYMLINK ? (size_t)entry.size : 0;
  if (waiting < sizeof(entry) + entry.name_bytes + target_bytes) return MORE;
  take(unpack, sizeof(entry));
  const uint8_t* name = take(unpack, entry.name_bytes);
  const uint8_t* target = take(unpack, target_bytes);
  if (entry.type < FK_TREE_LEAVE) {
    const bool named = unpack->begun;
    if (named ? !is_name(name, entry.name_bytes) : entry.name_bytes > 0) return EPROTO;
    if (target_bytes > 0 && memchr(target, 0, target_bytes)) return EPROTO;
    if (!trail_name(&unpack->place.trail, name, entry.name_bytes)) return ENAMETOOLONG;
  }
  unpack->begun = true;
  return place_entry(unpack, &entry, target);
}

static int read_run(struct unpack_operation* unpack) {
  struct fk_tree_run run;
  if (backlog_length(&unpack->backlog) < sizeof(run)) return MORE;
  memcpy(&run, take(unpack, sizeof(run)), sizeof(run));
  if (run.zero != 0 || run.offset < unpack->at || run.offset > unpack->size) return EPROTO;
  if (run.bytes > unpack->size - run.offset) return EPROTO;
  unpack->at = run.offset;
  unpack->run_left = run.bytes;
  return run.bytes > 0 ? 0 : place_file_end(&unpack->place, run.offset);
}

static int read_bytes(struct unpack_operation* unpack) {
  size_t count = backlog_length(&unpack->backlog);
  if (count > unpack->run_left) count = unpack->run_left;
  if (count > BYTES_PER_TURN) count = BYTES_PER_TURN;
  // Up to the end of a page, which would be looked up again for the rest of it.
  if (count < unpack->run_left) {
    const size_t beyond = (unpack->at + count) % PAGE_BYTES;
    count = count > beyond ? count - beyond : 0;
  }
  if (count == 0) return MORE;
  const int error = place_bytes(&unpack->place, unpack->at, take(unpack, count), count);
  if (error != 0) return error;
  unpack->at += count;
  unpack->run_left -= (uint32_t)count;
  return unpack->at == unpack->size ? place_file_end(&unpack->place, unpack->size) : 0;
}

static int read_next(struct unpack_operation* unpack) {
  if (unpack->complete) return backlog_length(&unpack->backlog) > 0 ? EPROTO : MORE;
  if (unpack->place.file < 0) return read_entry(unpack);
  return unpack->run_left > 0 ? read_bytes(unpack) : read_run(unpack);
}

// Grants what has been looked at, in steps of half a window, so that grants are few.
static void grant(struct unpack_operation* unpack) {
  const uint64_t limit = unpack->received - backlog_length(&unpack->backlog) + WINDOW;
  if (unpack->end || limit - unpack->granted < WINDOW / 2) return;
  unpack->granted = limit;
  const struct fk_header header = {
      .type = FK_WINDOW, .stream = FK_INPUT, .id = unpack->operation.id, .offset = limit};
  connection_send(&header, NULL);
}

static void unpack_run(struct operation* operation) {
  struct unpack_operation* unpack = (struct unpack_operation*)operation;
  const size_t before = backlog_length(&unpack->backlog);
  int entries = 0;
  int state = 0;
  while (state == 0 && entries < ENTRIES_PER_TURN &&
         before - backlog_length(&unpack->backlog) < BYTES_PER_TURN) {
    state = read_next(unpack);
    if (unpack->place.file < 0) entries++;
  }
  if (state == MORE && unpack->end) {
    finish_unpack(unpack, unpack->complete ? 0 : EPROTO, false);
  } else if (state > 0) {
    finish_unpack(unpack, state, state != EPROTO);
  } else {
    if (state == 0) operation_schedule(operation);
    grant(unpack);
  }
}

static void unpack_input(struct operation* operation, uint64_t offset, const uint8_t* bytes,
                         size_t count, bool end) {
  struct unpack_operation* unpack = (struct unpack_operation*)operation;
  int error = 0;
  if (unpack->end || offset != unpack->received || count > unpack->granted - unpack->received ||
      end != (count == 0)) {
    error = EPROTO;
  }
  if (error == 0 && count > 0) error = backlog_add(&unpack->backlog, bytes, count);
  if (error != 0) {
    finish_unpack(unpack, error, false);
    return;
  }
  unpack->end = end;
  unpack->received += count;
  operation_schedule(operation);
}

static void unpack_cancel(struct operation* operation, int error) {
  finish_unpack((struct unpack_operation*)operation, error, false);
}

static const struct operation_type unpack_type = {
    .run = unpack_run, .cancel = unpack_cancel, .input = unpack_input};

int file_unpack(uint32_t id, const struct file_request* request) {
  const size_t bytes = strlen(request->path) + 1;
  if (bytes > FK_MAX_PATH + 1) return ENAMETOOLONG;
  struct unpack_operation* unpack = operation_new(&unpack_type, id, sizeof(*unpack) + bytes);
  if (!unpack) return ENOMEM;
  memcpy(unpack->path, request->path, bytes);
  place_init(&unpack->place, unpack->path);
  unpack->granted = FK_INPUT_WINDOW;
  return -1;
}
