// Trees for the host: FK_FILE_PACK.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "inodes.h"
#include "operation.h"
#include "protocol.h"
#include "trail.h"
#include "tree_times.h"
#include "walk.h"

enum {
  // Looked at in one turn.
  ENTRIES_PER_TURN = 8,
  // Where less is left of a window, contents go through the buffer for entries.
  SMALL_WINDOW = 1024,
  LONGEST_ENTRY = sizeof(struct fk_tree_entry) + FK_MAX_NAME + FK_MAX_PATH + 1,
  // Bound of the names of directories that wait, in bytes.
  MAX_WAITING_BYTES = 8 * 1024 * 1024,
  FIRST_WAITING_BYTES = 4096,
  MODE_BITS = 01777,
  STATUS_BLOCK_BYTES = 512,
};

/*
 * The files of a directory come first. The directories in it wait by their
 * names, and are gone into when it has been read, so that no two are read at once.
 */
struct pack_operation {
  struct operation operation;
  struct trail trail;
  struct walk walk; /* its root is not used */
  bool reading;     /* the directory has more entries */
  bool complete;    /* END has been put */
  char* waiting;    /* names, of each its bytes and then their number */
  size_t waiting_bytes, waiting_size;
  struct inodes inodes;
  uint64_t skipped;
  int file;                  /* that is being sent, or -1 */
  bool sparse;               /* it may have holes */
  uint64_t at, extent, size; /* [at, extent) is to be sent before the next hole */
  uint64_t sent, limit;
  uint32_t pending_begin, pending_end; /* an entry that waits for the window */
  uint8_t pending[LONGEST_ENTRY];
};

// Besides 0 and errno: all has been put.
enum { COMPLETE = -1 };

static void finish_pack(struct pack_operation* pack, int error, bool named) {
  const struct trail* trail = &pack->trail;
  if (error != 0 && named && trail->entry_bytes > 0) {
    file_reply_path(pack->operation.id, error, trail->path, trail->entry_bytes);
  } else {
    connection_reply(pack->operation.id, error);
  }
  if (pack->file >= 0) close(pack->file);
  trail_close(&pack->trail);
  free(pack->waiting);
  inodes_free(&pack->inodes);
  operation_finish(&pack->operation);
}

// Entries.

static void put(struct pack_operation* pack, const void* bytes, size_t count) {
  if (count > 0) memcpy(pack->pending + pack->pending_end, bytes, count);
  pack->pending_end += (uint32_t)count;
}

// Puts the entry that was named last.
static void put_entry(struct pack_operation* pack, struct fk_tree_entry* entry) {
  const struct trail* trail = &pack->trail;
  const size_t directory = trail->path_bytes;
  const char* name = trail->path + (directory > 0 ? directory + 1 : 0);
  entry->name_bytes = (uint16_t)(trail->path + trail->entry_bytes - name);
  pack->pending_begin = pack->pending_end = 0;
  put(pack, entry, sizeof(*entry));
  put(pack, name, entry->name_bytes);
}

static void put_mark(struct pack_operation* pack, uint8_t type, uint64_t size) {
  const struct fk_tree_entry entry = {.type = type, .size = size};
  pack->pending_begin = pack->pending_end = 0;
  put(pack, &entry, sizeof(entry));
}

static struct fk_tree_entry describe(uint8_t type, const struct stat* status) {
  return (struct fk_tree_entry){.type = type,
                                .mode = type == FK_TREE_SYMLINK ? 0 : status->st_mode & MODE_BITS,
                                .accessed_ns = tree_nanoseconds(status->st_atim),
                                .modified_ns = tree_nanoseconds(status->st_mtim)};
}

// Puts an opened file, and takes it over.
static int put_opened(struct pack_operation* pack, int fd, const struct stat* status) {
  struct fk_tree_entry entry = describe(FK_TREE_FILE, status);
  entry.size = (uint64_t)status->st_size;
  pack->file = fd;
  if (status->st_nlink > 1) {
    bool known;
    uint64_t number;
    const int error = inodes_number(&pack->inodes, status->st_dev, status->st_ino, &known, &number);
    if (error != 0) return error;
    if (known)
      entry = (struct fk_tree_entry){.type = FK_TREE_LINK, .size = number};
    else
      entry.flags = FK_TREE_LINKED;
  }
  put_entry(pack, &entry);
  pack->at = pack->extent = 0;
  pack->size = entry.size;
  pack->sparse = (uint64_t)status->st_blocks * STATUS_BLOCK_BYTES < entry.size;
  if (entry.type == FK_TREE_LINK || entry.size == 0) {
    close(fd);
    pack->file = -1;
  }
  return 0;
}

// What has gone since it was listed, or has become something else, is passed over.
static bool has_gone(int error) { return error == ENOENT || error == ENOTDIR || error == ELOOP; }

static int put_file(struct pack_operation* pack, const char* name) {
  const int fd = file_open_at(pack->trail.fd, name, O_RDONLY | O_NOFOLLOW, 0);
  if (fd < 0) return has_gone(errno) ? 0 : errno;
  struct stat status;
  if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) return put_opened(pack, fd, &status);
  close(fd);
  return 0;
}

static int put_symlink(struct pack_operation* pack, const char* name) {
  char target[FK_MAX_PATH + 1];
  struct stat status;
  const int at = pack->trail.fd;
  if (fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) < 0) return has_gone(errno) ? 0 : errno;
  const ssize_t bytes = readlinkat(at, name, target, sizeof(target));
  if (bytes < 0) return errno == EINVAL || has_gone(errno) ? 0 : errno;
  if (bytes == 0 || bytes > FK_MAX_PATH) return ENAMETOOLONG;
  struct fk_tree_entry entry = describe(FK_TREE_SYMLINK, &status);
  entry.size = (uint64_t)bytes;
  put_entry(pack, &entry);
  put(pack, target, (size_t)bytes);
  return 0;
}

// Has a directory gone into later.
static int wait_in_line(struct pack_operation* pack, const struct walk_entry* entry) {
  const uint16_t bytes = (uint16_t)entry->name_bytes;
  const size_t needed = pack->waiting_bytes + bytes + sizeof(bytes);
  if (needed > pack->waiting_size) {
    const size_t size = pack->waiting_size ? 2 * pack->waiting_size : FIRST_WAITING_BYTES;
    char* waiting = size > MAX_WAITING_BYTES ? NULL : realloc(pack->waiting, size);
    if (!waiting) return ENOMEM;
    pack->waiting = waiting;
    pack->waiting_size = size;
  }
  memcpy(pack->waiting + pack->waiting_bytes, entry->name, bytes);
  memcpy(pack->waiting + pack->waiting_bytes + bytes, &bytes, sizeof(bytes));
  pack->waiting_bytes = needed;
  return 0;
}

// For file systems that do not say it in their listings.
static uint8_t type_of(const struct pack_operation* pack, const char* name) {
  struct stat status;
  if (fstatat(pack->trail.fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0) return DT_UNKNOWN;
  return (uint8_t)(status.st_mode >> 12 & 017);
}

static int put_listed(struct pack_operation* pack, const struct walk_entry* entry) {
  const char* name = trail_name(&pack->trail, entry->name, entry->name_bytes);
  if (!name) return ENAMETOOLONG;
  switch (entry->type != DT_UNKNOWN ? entry->type : type_of(pack, name)) {
    case DT_REG:
      return put_file(pack, name);
    case DT_LNK:
      return put_symlink(pack, name);
    case DT_DIR:
      return wait_in_line(pack, entry);
    case DT_UNKNOWN:
      return 0;
    default:
      pack->skipped++;
      return 0;
  }
}

// Directories.

// Goes into the directory that was named last, opened as `fd`.
static int enter(struct pack_operation* pack, int fd, const struct stat* status) {
  struct fk_tree_entry entry = describe(FK_TREE_DIRECTORY, status);
  put_entry(pack, &entry);
  const int error = trail_enter(&pack->trail, fd, status);
  if (error != 0) return error;
  trail_top(&pack->trail)->waiting = pack->waiting_bytes;
  pack->walk.fd = fd;
  pack->reading = true;
  return 0;
}

static int enter_waiting(struct pack_operation* pack) {
  uint16_t bytes;
  pack->waiting_bytes -= sizeof(bytes);
  memcpy(&bytes, pack->waiting + pack->waiting_bytes, sizeof(bytes));
  pack->waiting_bytes -= bytes;
  const char* name = trail_name(&pack->trail, pack->waiting + pack->waiting_bytes, bytes);
  if (!name) return ENAMETOOLONG;
  const int fd = file_open_at(pack->trail.fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (fd < 0) return has_gone(errno) ? 0 : errno;
  struct stat status;
  if (fstat(fd, &status) == 0) return enter(pack, fd, &status);
  const int error = errno;
  close(fd);
  return error;
}

static int leave(struct pack_operation* pack) {
  int fd;
  struct step step;
  const int error = trail_leave(&pack->trail, &fd, &step);
  if (error != 0) return error;
  close(fd);
  put_mark(pack, FK_TREE_LEAVE, 0);
  return 0;
}

// Puts the next entry, if one step leads to one. Returns 0, an errno, or COMPLETE.
static int advance(struct pack_operation* pack) {
  struct trail* trail = &pack->trail;
  if (pack->complete) return COMPLETE;
  if (trail->depth == 0) {
    pack->complete = true;
    put_mark(pack, FK_TREE_END, pack->skipped);
    return 0;
  }
  if (!pack->reading) {
    return pack->waiting_bytes > trail_top(trail)->waiting ? enter_waiting(pack) : leave(pack);
  }
  struct walk_entry entry;
  if (walk_take(&pack->walk, &entry)) return put_listed(pack, &entry);
  trail->entry_bytes = trail->path_bytes;
  const int state = walk_read(&pack->walk);
  if (state != WALK_NEXT) return state;
  pack->reading = false;
  return 0;
}

// Contents.

static void end_file(struct pack_operation* pack) {
  close(pack->file);
  pack->file = -1;
}

// Ends a file before the end that was announced: what is missing are zeros, or has been cut off.
static void put_last_run(struct pack_operation* pack, uint64_t size) {
  const struct fk_tree_run run = {.offset = size};
  pack->pending_begin = pack->pending_end = 0;
  put(pack, &run, sizeof(run));
  end_file(pack);
}

// Finds the next part that is no hole. Returns 0 or an errno; the file has ended if there is none.
static int next_extent(struct pack_operation* pack) {
  pack->extent = pack->size;
  if (!pack->sparse) return 0;
  const off_t data = lseek(pack->file, (off_t)pack->at, SEEK_DATA);
  if (data < 0 && errno == EINVAL) {
    // The file system cannot tell.
    pack->sparse = false;
    return 0;
  }
  if (data < 0 && errno != ENXIO) return errno;
  if (data < 0 || (uint64_t)data >= pack->size) {
    put_last_run(pack, pack->size);
    return 0;
  }
  pack->at = (uint64_t)data;
  const off_t hole = lseek(pack->file, data, SEEK_HOLE);
  if (hole > data && (uint64_t)hole < pack->size) pack->extent = (uint64_t)hole;
  return 0;
}

// Reads a run of the file to `at`, where there is room for its header and at least a byte. Returns
// the bytes that it takes, 0 at the end of the file, or -1 with errno.
static ssize_t read_run(struct pack_operation* pack, uint8_t* at, size_t room) {
  struct fk_tree_run run = {.offset = pack->at};
  size_t count = room - sizeof(run);
  if (count > pack->extent - pack->at) count = (size_t)(pack->extent - pack->at);
  const ssize_t bytes = pread(pack->file, at + sizeof(run), count, (off_t)pack->at);
  if (bytes <= 0) return bytes;
  run.bytes = (uint32_t)bytes;
  memcpy(at, &run, sizeof(run));
  pack->at += (uint64_t)bytes;
  if (pack->at == pack->size) end_file(pack);
  return (ssize_t)sizeof(run) + bytes;
}

// Puts contents into the frame, or, where the window is small, where entries wait. Returns 0 or an
// errno.
static int put_contents(struct pack_operation* pack, uint8_t* frame, size_t room, size_t* used) {
  if (pack->at == pack->extent) {
    const int error = next_extent(pack);
    if (error != 0 || pack->file < 0) return error;
  }
  const bool direct = room - *used >= SMALL_WINDOW;
  uint8_t* at = direct ? frame + *used : pack->pending;
  const ssize_t bytes = read_run(pack, at, direct ? room - *used : sizeof(pack->pending));
  if (bytes < 0) return errno == EINTR ? 0 : errno;
  if (bytes == 0) {
    put_last_run(pack, pack->at);
  } else if (direct) {
    *used += (size_t)bytes;
  } else {
    pack->pending_begin = 0;
    pack->pending_end = (uint32_t)bytes;
  }
  return 0;
}

// The operation.

// Moves what waits into the frame, as far as there is room.
static void take_pending(struct pack_operation* pack, uint8_t* frame, size_t room, size_t* used) {
  size_t count = pack->pending_end - pack->pending_begin;
  if (count > room - *used) count = room - *used;
  if (count > 0) memcpy(frame + *used, pack->pending + pack->pending_begin, count);
  pack->pending_begin += (uint32_t)count;
  *used += count;
}

static bool has_pending(const struct pack_operation* pack) {
  return pack->pending_begin < pack->pending_end;
}

// Fills a frame. Returns 0, an errno, or COMPLETE.
static int fill(struct pack_operation* pack, uint8_t* frame, size_t room, size_t* used) {
  for (int entries = 0; entries < ENTRIES_PER_TURN;) {
    take_pending(pack, frame, room, used);
    if (has_pending(pack)) return 0;
    const bool contents = pack->file >= 0;
    // Contents go through the buffer only where the window asks for it, not behind entries.
    if (contents && *used > 0 && room - *used < SMALL_WINDOW) return 0;
    const int state = contents ? put_contents(pack, frame, room, used) : advance(pack);
    if (state != 0) return state;
    if (!contents) entries++;
  }
  take_pending(pack, frame, room, used);
  return 0;
}

static void complete(struct pack_operation* pack) {
  const struct fk_header header = {
      .type = FK_END, .stream = FK_OUTPUT, .id = pack->operation.id, .offset = pack->sent};
  connection_send(&header, NULL);
  finish_pack(pack, 0, false);
}

static void pack_run(struct operation* operation) {
  struct pack_operation* pack = (struct pack_operation*)operation;
  size_t room;
  uint8_t* frame = connection_data_begin(&room);
  if (room > pack->limit - pack->sent) room = (size_t)(pack->limit - pack->sent);
  // What waits can only wait on.
  if (room == 0 && has_pending(pack)) return;
  size_t used = 0;
  const int state = fill(pack, frame, room, &used);
  if (state > 0) {
    // What is in the frame is of no use any more, and leaves room for the reply.
    finish_pack(pack, state, true);
    return;
  }
  if (used > 0) {
    const struct fk_header header = {.payload_bytes = (uint32_t)used,
                                     .type = FK_DATA,
                                     .stream = FK_OUTPUT,
                                     .id = operation->id,
                                     .offset = pack->sent};
    connection_data_commit(&header);
    pack->sent += used;
  }
  if (state == COMPLETE)
    complete(pack);
  else if (!has_pending(pack) || pack->sent < pack->limit)
    operation_schedule(operation);
}

static void pack_cancel(struct operation* operation, int error) {
  finish_pack((struct pack_operation*)operation, error, false);
}

static void pack_window(struct operation* operation, uint16_t stream, uint64_t limit) {
  struct pack_operation* pack = (struct pack_operation*)operation;
  if (stream != FK_OUTPUT || limit <= pack->limit) return;
  pack->limit = limit;
  operation_schedule(operation);
}

static const struct operation_type pack_type = {
    .run = pack_run, .cancel = pack_cancel, .window = pack_window};

int file_pack(uint32_t id, const struct file_request* request) {
  // The path itself is followed; nothing below is.
  const int fd = file_open(request->path, O_RDONLY, 0);
  if (fd < 0) return errno;
  struct stat status;
  int error = fstat(fd, &status) == 0 ? 0 : errno;
  if (error == 0 && !S_ISDIR(status.st_mode) && !S_ISREG(status.st_mode)) error = EINVAL;
  struct pack_operation* pack = error == 0 ? operation_new(&pack_type, id, sizeof(*pack)) : NULL;
  if (!pack) {
    close(fd);
    return error != 0 ? error : ENOMEM;
  }
  trail_init(&pack->trail);
  walk_init(&pack->walk);
  pack->file = -1;
  pack->limit = request->output_limit;
  error = S_ISDIR(status.st_mode) ? enter(pack, fd, &status) : put_opened(pack, fd, &status);
  if (error != 0) {
    finish_pack(pack, error, false);
    return -1;
  }
  operation_schedule(&pack->operation);
  return -1;
}
