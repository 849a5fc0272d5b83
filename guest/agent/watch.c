// Watching files and trees: FK_FILE_WATCH.

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "limits.h"
#include "loop.h"
#include "operation.h"
#include "output.h"
#include "protocol.h"
#include "walk.h"
#include "watched.h"

enum {
  ENTRY_MASK = IN_ATTRIB | IN_MODIFY | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO,
  ROOT_MASK = ENTRY_MASK | IN_DELETE_SELF | IN_MOVE_SELF,
  CHANGE_MASK = IN_ATTRIB | IN_MODIFY,
  // Once, until it has been read empty: events behind a shut window wake nobody.
  INTEREST = EPOLLIN | EPOLLONESHOT,
  READ_BYTES = 4096,
  LONGEST_EVENT = sizeof(struct fk_dirent) + FK_MAX_PATH,
};

// What happens waits in the kernel's queue, which is bounded, and is read when the host has taken
// what was read before. Directories of a tree are watched one by one; each is read after that, so
// that nothing in it is missed.
struct watch_operation {
  struct operation operation;
  struct watch watch;
  int fd; /* of inotify */
  int root_wd;
  bool recursive;
  bool complete; /* all that was there at the beginning is watched */
  bool gone;     /* the root is no longer at its path */
  // From inotify, not looked at yet: events[events_begin, events_end).
  uint32_t events_begin, events_end;
  struct watched_list watched;
  struct walk walk;
  _Alignas(struct inotify_event) uint8_t events[READ_BYTES];
  struct output output;
  char path[];
};

static void finish_watch(struct watch_operation* watching, int error) {
  loop_close(watching->fd);
  walk_close(&watching->walk);
  watched_free(&watching->watched);
  if (error == 0) output_end(&watching->output, watching->operation.id);
  connection_reply(watching->operation.id, error);
  operation_finish(&watching->operation);
}

static bool has_room(const struct watch_operation* watching) {
  return output_room(&watching->output) >= LONGEST_EVENT;
}

static void put_event(struct watch_operation* watching, uint8_t type, const char* path,
                      size_t bytes) {
  const struct fk_dirent header = {.name_bytes = (uint16_t)bytes, .type = type};
  output_put(&watching->output, &header, sizeof(header));
  output_put(&watching->output, path, bytes);
}

// Has a directory of the tree, which may be new, watched and read. Returns 0 or an errno.
static int scan(struct watch_operation* watching, const char* path, size_t bytes, bool silent) {
  if (watching->walk.root < 0) {
    const int error = walk_open(&watching->walk, watching->path);
    // The root has gone, of which there is an event as well.
    if (error == ENOENT || error == ENOTDIR || error == ELOOP) return 0;
    if (error != 0) return error;
  }
  return walk_add(&watching->walk, path, bytes, silent);
}

// One event of an entry of a directory. Returns 0 or an errno.
static int take_named(struct watch_operation* watching, const struct watched* directory,
                      const struct inotify_event* event) {
  char path[FK_MAX_PATH];
  size_t bytes = directory->bytes;
  const size_t name_bytes = strlen(event->name);
  if (bytes + 1 + name_bytes > sizeof(path)) return ENAMETOOLONG;
  memcpy(path, directory->path, bytes);
  if (bytes > 0) path[bytes++] = '/';
  memcpy(path + bytes, event->name, name_bytes);
  bytes += name_bytes;
  put_event(watching, event->mask & CHANGE_MASK ? FK_WATCH_CHANGE : FK_WATCH_RENAME, path, bytes);
  if (!watching->recursive || !(event->mask & IN_ISDIR)) return 0;
  // What moves away may come back under another name.
  if (event->mask & IN_MOVED_FROM) {
    watched_forget(&watching->watched, watching->fd, path, bytes);
  }
  return event->mask & (IN_CREATE | IN_MOVED_TO) ? scan(watching, path, bytes, false) : 0;
}

// Returns 0 or an errno.
static int take_event(struct watch_operation* watching, const struct inotify_event* event) {
  if (event->mask & IN_Q_OVERFLOW) {
    put_event(watching, FK_WATCH_OVERFLOW, NULL, 0);
    // New directories may be among what was lost.
    return watching->recursive ? scan(watching, "", 0, true) : 0;
  }
  const struct watched* directory = watched_find(&watching->watched, event->wd);
  if (!directory) return 0;
  const bool is_root = event->wd == watching->root_wd;
  if (event->mask & IN_IGNORED) {
    watched_remove(&watching->watched, event->wd);
    if (is_root) watching->gone = true;
    return 0;
  }
  if (event->len > 0) return take_named(watching, directory, event);
  // Of directories below, their parents say the same.
  if (!is_root) return 0;
  put_event(watching, event->mask & CHANGE_MASK ? FK_WATCH_CHANGE : FK_WATCH_RENAME, NULL, 0);
  if (event->mask & IN_MOVE_SELF) watching->gone = true;
  return 0;
}

static int take_events(struct watch_operation* watching) {
  while (watching->events_begin < watching->events_end && has_room(watching)) {
    const struct inotify_event* event =
        (const struct inotify_event*)(watching->events + watching->events_begin);
    watching->events_begin += (uint32_t)sizeof(*event) + event->len;
    const int error = take_event(watching, event);
    if (error != 0) return error;
  }
  return 0;
}

// Watches the directory that is about to be read. Returns 0 or an errno.
static int watch_directory(struct watch_operation* watching) {
  const struct walk* walk = &watching->walk;
  if (walk->prefix_bytes == 0) return 0;
  char path[2 * PATH_MAX];
  const size_t root_bytes = strlen(watching->path);
  const size_t bytes = walk->prefix_bytes - 1;
  if (root_bytes + 1 + bytes >= PATH_MAX) return ENAMETOOLONG;
  memcpy(path, watching->path, root_bytes);
  path[root_bytes] = '/';
  memcpy(path + root_bytes + 1, walk->prefix, bytes);
  path[root_bytes + 1 + bytes] = 0;
  const int wd = inotify_add_watch(watching->fd, path, ENTRY_MASK | IN_ONLYDIR | IN_DONT_FOLLOW);
  if (wd < 0) return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : errno;
  // The root again, mounted below itself.
  if (wd == watching->root_wd) return 0;
  return watched_add(&watching->watched, wd, walk->prefix, bytes);
}

static int walk_on(struct watch_operation* watching) {
  struct walk* walk = &watching->walk;
  struct walk_entry entry;
  while (has_room(watching) && walk_take(walk, &entry)) {
    if (walk->prefix_bytes + entry.name_bytes > FK_MAX_PATH) return ENAMETOOLONG;
    if (!walk->silent) {
      char path[FK_MAX_PATH];
      if (walk->prefix_bytes > 0) memcpy(path, walk->prefix, walk->prefix_bytes);
      memcpy(path + walk->prefix_bytes, entry.name, entry.name_bytes);
      put_event(watching, FK_WATCH_RENAME, path, walk->prefix_bytes + entry.name_bytes);
    }
    const int error = entry.type == DT_DIR ? walk_add_entry(walk, &entry) : 0;
    if (error != 0) return error;
  }
  if (walk->begin < walk->end) return 0;
  int state = walk_read(walk);
  if (state == WALK_NEXT) {
    state = walk_next(walk);
    if (state == 0) return watch_directory(watching);
  }
  // An open directory could not be seen to vanish.
  if (state == WALK_END) walk_close(walk);
  return state == WALK_END ? 0 : state;
}

enum { IDLE = -1 };

static int read_events(struct watch_operation* watching) {
  const ssize_t count = read(watching->fd, watching->events, sizeof(watching->events));
  if (count < 0 && errno == EINTR) return 0;
  if (count < 0 && errno != EAGAIN) return errno;
  if (count <= 0) {
    const int error = loop_modify(watching->fd, INTEREST);
    return error != 0 ? error : IDLE;
  }
  watching->events_begin = 0;
  watching->events_end = (uint32_t)count;
  return 0;
}

// Fills the buffer, which is empty, a little. Returns 0, an errno, or IDLE.
static int step(struct watch_operation* watching) {
  output_clear(&watching->output);
  if (watching->events_begin < watching->events_end) return take_events(watching);
  if (watching->walk.root >= 0) return walk_on(watching);
  if (!watching->complete) {
    watching->complete = true;
    put_event(watching, FK_WATCH_READY, NULL, 0);
    return 0;
  }
  return read_events(watching);
}

// Called with room for a frame of the largest size.
static void watch_run(struct operation* operation) {
  struct watch_operation* watching = (struct watch_operation*)operation;
  if (output_empty(&watching->output)) {
    if (watching->gone) {
      finish_watch(watching, 0);
      return;
    }
    const int state = step(watching);
    if (state > 0) finish_watch(watching, state);
    if (state != 0) return;
  }
  output_send(&watching->output, watching->operation.id);
  // What is left waits for a window.
  if (output_empty(&watching->output)) operation_schedule(operation);
}

static void watch_ready(struct watch* watch, uint32_t events) {
  (void)events;
  struct watch_operation* watching =
      (struct watch_operation*)((uint8_t*)watch - offsetof(struct watch_operation, watch));
  operation_schedule(&watching->operation);
}

static void watch_cancel(struct operation* operation, int error) {
  finish_watch((struct watch_operation*)operation, error);
}

static void watch_window(struct operation* operation, uint16_t stream, uint64_t limit) {
  struct watch_operation* watching = (struct watch_operation*)operation;
  if (output_widen(&watching->output, stream, limit)) operation_schedule(operation);
}

static const struct operation_type watch_type = {
    .run = watch_run, .cancel = watch_cancel, .window = watch_window};

static int open_inotify(void) {
  int fd;
  do {
    fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  } while (fd < 0 && limits_retry());
  return fd;
}

// Returns 0 or an errno.
static int start(struct watch_operation* watching) {
  watching->root_wd = inotify_add_watch(watching->fd, watching->path, ROOT_MASK);
  if (watching->root_wd < 0) return errno;
  int error = watched_add(&watching->watched, watching->root_wd, "", 0);
  if (error == 0 && watching->recursive) {
    error = walk_open(&watching->walk, watching->path);
    if (error == 0) error = walk_add(&watching->walk, "", 0, true);
    // A file has nothing below.
    if (error == ENOTDIR) {
      watching->recursive = false;
      error = 0;
    }
  }
  return error != 0 ? error : loop_add(watching->fd, INTEREST, &watching->watch);
}

int file_watch(uint32_t id, const struct file_request* request) {
  const size_t bytes = strlen(request->path) + 1;
  struct watch_operation* watching = operation_new(&watch_type, id, sizeof(*watching) + bytes);
  if (!watching) return ENOMEM;
  memcpy(watching->path, request->path, bytes);
  watching->watch.ready = watch_ready;
  watching->recursive = (request->flags & FK_FILE_RECURSIVE) != 0;
  watching->output.limit = request->output_limit;
  walk_init(&watching->walk);
  watching->fd = open_inotify();
  const int error = watching->fd < 0 ? errno : start(watching);
  if (error != 0) {
    if (watching->fd >= 0) loop_close(watching->fd);
    walk_close(&watching->walk);
    watched_free(&watching->watched);
    operation_finish(&watching->operation);
    return error;
  }
  operation_schedule(&watching->operation);
  return -1;
}
