#include "stream.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection.h"
#include "protocol.h"
#include "terminal.h"

// Edge-triggered: a stream whose window is shut stays readable without waking the loop. A pipe says
// by itself that its last writer is gone, a socket has to be asked.
static uint32_t interest(const struct outlet* outlet) {
  return outlet->kind == OUTLET_SOCKET ? EPOLLRDHUP | EPOLLET : EPOLLET;
}

// Each write to a pipe is an edge. Where nobody may read what is there, one of them says it all.
static void mute(struct outlet* outlet) {
  if (!outlet->muted) outlet->muted = loop_modify(outlet->fd, interest(outlet)) == 0;
}

static void unmute(struct outlet* outlet) {
  if (outlet->muted) outlet->muted = loop_modify(outlet->fd, EPOLLIN | interest(outlet)) != 0;
}

static void outlet_ready(struct watch* watch, uint32_t events) {
  struct outlet* outlet = (struct outlet*)watch;  // `watch` is the first member.
  if (events & EPOLLIN) {
    if (outlet->readable && outlet->limit == outlet->sent && !outlet->ended) mute(outlet);
    outlet->readable = true;
  }
  if (events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) {
    outlet->hangup = true;
    // Whether a socket has ended or failed is for a read to say.
    if (outlet->kind == OUTLET_SOCKET) outlet->readable = true;
  }
  operation_schedule(outlet->owner);
}

static int outlet_watch(struct outlet* outlet) {
  if (outlet->watched) return 0;
  const int error = loop_add(outlet->fd, EPOLLIN | interest(outlet), &outlet->watch);
  outlet->watched = error == 0;
  return error;
}

int outlet_open(struct outlet* outlet, struct operation* owner, int fd, uint16_t stream,
                enum outlet_kind kind) {
  outlet->watch.ready = outlet_ready;
  outlet->owner = owner;
  outlet->fd = fd;
  outlet->stream = stream;
  outlet->kind = kind;
  outlet->readable = kind == OUTLET_FILE;
  outlet->remaining = UINT64_MAX;
  return kind == OUTLET_FILE ? 0 : outlet_watch(outlet);
}

void outlet_close(struct outlet* outlet) {
  if (outlet->fd >= 0) loop_close(outlet->fd);
  outlet->fd = -1;
}

static size_t bytes_in_pipe(int fd) {
  int count = 0;
  return ioctl(fd, FIONREAD, &count) == 0 && count > 0 ? (size_t)count : 0;
}

// What poll() says of a terminal. What was written to it may still be on its way to where it can be
// read or counted, and poll() waits for that.
static int terminal_state(int fd) {
  struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
  return poll(&poll_fd, 1, 0) > 0 ? poll_fd.revents : 0;
}

static bool is_exhausted(const struct outlet* outlet) {
  if (outlet->kind == OUTLET_TERMINAL) {
    return outlet->hangup && !(terminal_state(outlet->fd) & POLLIN);
  }
  if (outlet->kind == OUTLET_PIPE) return outlet->hangup && bytes_in_pipe(outlet->fd) == 0;
  uint8_t next;
  const off_t at = lseek(outlet->fd, 0, SEEK_CUR);
  return at >= 0 && pread(outlet->fd, &next, 1, at) == 0;
}

void outlet_end_now(struct outlet* outlet) {
  if (outlet->ended) return;
  const struct fk_header header = {
      .type = FK_END, .stream = outlet->stream, .id = outlet->owner->id, .offset = outlet->sent};
  connection_send(&header, NULL);
  outlet->ended = true;
  if (outlet->hangup || outlet->kind != OUTLET_PIPE) outlet_close(outlet);
}

static enum progress end_when_room(struct outlet* outlet) {
  if (connection_room() < CONNECTION_REPLY_ROOM) return PROGRESS_AGAIN;
  outlet_end_now(outlet);
  return PROGRESS_ENDED;
}

// What a reader would come to who had a window. A socket may have failed instead of having ended.
static enum progress without_window(struct outlet* outlet) {
  if (outlet->kind != OUTLET_SOCKET) {
    // What has no more bytes has ended, whatever its window.
    return is_exhausted(outlet) ? end_when_room(outlet) : PROGRESS_WAIT;
  }
  if (!outlet->hangup) return PROGRESS_WAIT;
  uint8_t next;
  const ssize_t count = recv(outlet->fd, &next, 1, MSG_PEEK);
  if (count == 0) return end_when_room(outlet);
  return count > 0 || errno == EAGAIN || errno == EINTR ? PROGRESS_WAIT : PROGRESS_FAILED;
}

enum progress outlet_pump(struct outlet* outlet) {
  if (outlet->fd < 0 || outlet->ended) return PROGRESS_ENDED;
  if (outlet->remaining == 0) return end_when_room(outlet);
  if (!outlet->readable) return outlet->hangup ? end_when_room(outlet) : PROGRESS_WAIT;
  uint64_t allowed = outlet->limit - outlet->sent;
  if (allowed == 0) return without_window(outlet);
  if (allowed > outlet->remaining) allowed = outlet->remaining;

  size_t room;
  uint8_t* at = connection_data_begin(&room);
  if (room == 0) return PROGRESS_AGAIN;
  if (room > allowed) room = (size_t)allowed;
  const ssize_t count = read(outlet->fd, at, room);
  if (count < 0 && errno == EINTR) return PROGRESS_AGAIN;
  if (count == 0 || (count < 0 && errno == EIO && outlet->kind == OUTLET_TERMINAL)) {
    outlet->hangup = true;
    return end_when_room(outlet);
  }
  if (count < 0 && errno != EAGAIN) return PROGRESS_FAILED;
  if (count < 0) {
    outlet->readable = false;
    if (outlet->hangup) return end_when_room(outlet);
    errno = outlet_watch(outlet);
    return errno == 0 ? PROGRESS_WAIT : PROGRESS_FAILED;
  }
  const struct fk_header header = {.payload_bytes = (uint32_t)count,
                                   .type = FK_DATA,
                                   .stream = outlet->stream,
                                   .id = outlet->owner->id,
                                   .offset = outlet->sent};
  connection_data_commit(&header);
  outlet->sent += (uint64_t)count;
  if (outlet->remaining != UINT64_MAX) outlet->remaining -= (uint64_t)count;
  if (outlet->remaining == 0) return end_when_room(outlet);
  // A pipe gives all that it has, so a short read has emptied it: the read that would only say so
  // is saved, and an edge announces what comes later.
  if (outlet->kind == OUTLET_PIPE && (size_t)count < room) {
    outlet->readable = false;
    return outlet->hangup ? end_when_room(outlet) : PROGRESS_WAIT;
  }
  return PROGRESS_AGAIN;
}

void outlet_window(struct outlet* outlet, uint64_t limit) {
  if (limit <= outlet->limit) return;
  outlet->limit = limit;
  unmute(outlet);
  operation_schedule(outlet->owner);
}

void outlet_end_with_present(struct outlet* outlet) {
  if (outlet->fd < 0 || outlet->ended || outlet->hangup || outlet->remaining != UINT64_MAX) return;
  outlet->readable = true;
  // With nobody left at the other end it is read to its end, which counting would miss: a terminal
  // shows no more than a page of what is in it.
  if (outlet->kind == OUTLET_TERMINAL && terminal_state(outlet->fd) & POLLHUP) {
    outlet->hangup = true;
    return;
  }
  outlet->remaining = bytes_in_pipe(outlet->fd);
}

void outlet_discard(struct outlet* outlet) {
  if (outlet->fd < 0) return;
  unmute(outlet);
  static uint8_t sink[FK_MAX_PAYLOAD];
  const ssize_t count = read(outlet->fd, sink, sizeof(sink));
  if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) {
    outlet_close(outlet);
  } else if (count == (ssize_t)sizeof(sink)) {
    operation_schedule(outlet->owner);
  } else if (outlet->hangup) {
    outlet_close(outlet);
  }
}

static void inlet_ready(struct watch* watch, uint32_t events) {
  (void)events;
  struct inlet* inlet = (struct inlet*)watch;  // `watch` is the first member.
  operation_schedule(inlet->owner);
}

void inlet_open(struct inlet* inlet, struct operation* owner, int fd, uint32_t window) {
  inlet->watch.ready = inlet_ready;
  inlet->owner = owner;
  inlet->fd = fd;
  inlet->window = window;
  inlet->granted = window;
}

void inlet_close(struct inlet* inlet) {
  if (inlet->fd >= 0) loop_close(inlet->fd);
  inlet->fd = -1;
  inlet->watched = false;
  backlog_clear(&inlet->backlog);
}

bool inlet_is_done(const struct inlet* inlet) {
  return inlet->end && backlog_length(&inlet->backlog) == 0;
}

// Grants what has been written, in steps of half a window, so that grants are few.
static void grant(struct inlet* inlet) {
  const uint64_t written = inlet->received - backlog_length(&inlet->backlog);
  const uint64_t limit = written + inlet->window;
  if (inlet->end || limit - inlet->granted < inlet->window / 2) return;
  if (connection_room() < CONNECTION_REPLY_ROOM) {
    operation_schedule(inlet->owner);
    return;
  }
  inlet->granted = limit;
  const struct fk_header header = {
      .type = FK_WINDOW, .stream = FK_INPUT, .id = inlet->owner->id, .offset = limit};
  connection_send(&header, NULL);
}

// Writes what the descriptor takes now. Returns 0 or an errno; 0 with less than `count` in
// `*written` means that it takes no more for the moment.
static int write_some(int fd, const uint8_t* bytes, size_t count, size_t* written) {
  *written = 0;
  while (*written < count) {
    const ssize_t n = write(fd, bytes + *written, count - *written);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno == EAGAIN ? 0 : errno;
    *written += (size_t)n;
  }
  return 0;
}

// Keeps what the descriptor did not take: never more than a window.
static int hold(struct inlet* inlet, const uint8_t* bytes, size_t count) {
  const int error = backlog_add(&inlet->backlog, bytes, count);
  return error != 0 ? error : inlet_watch(inlet);
}

int inlet_watch(struct inlet* inlet) {
  if (inlet->watched) return 0;
  inlet->watched = true;
  return loop_add(inlet->fd, EPOLLOUT | EPOLLET, &inlet->watch);
}

static void close_when_done(struct inlet* inlet) {
  if (!inlet_is_done(inlet)) return;
  // A peer that is gone need not be told.
  if (inlet->socket && inlet->fd >= 0) (void)shutdown(inlet->fd, SHUT_WR);
  inlet_close(inlet);
}

// Writes, and keeps what the descriptor did not take. Returns 0 or an errno.
static int write_or_hold(struct inlet* inlet, const uint8_t* bytes, size_t count) {
  size_t written = 0;
  int error = 0;
  if (backlog_length(&inlet->backlog) == 0) error = write_some(inlet->fd, bytes, count, &written);
  if (error == 0 && written < count) error = hold(inlet, bytes + written, count - written);
  if (error != 0) inlet_close(inlet);
  return error;
}

int inlet_input(struct inlet* inlet, uint64_t offset, const uint8_t* bytes, size_t count,
                bool end) {
  if (inlet->end || offset != inlet->received || count > inlet->granted - inlet->received) {
    return EPROTO;
  }
  if (end != (count == 0)) return EPROTO;
  inlet->end = end;
  inlet->received += count;
  int error = 0;
  if (inlet->fd >= 0 && !end) {
    inlet->partial = inlet->terminal && !terminal_ends_line(bytes[count - 1]);
    error = write_or_hold(inlet, bytes, count);
  } else if (inlet->fd >= 0 && inlet->terminal) {
    uint8_t typed[2];
    error = write_or_hold(inlet, typed, terminal_end_of_input(inlet->fd, inlet->partial, typed));
  }
  close_when_done(inlet);
  grant(inlet);
  return error;
}

int inlet_pump(struct inlet* inlet) {
  int error = 0;
  struct backlog* backlog = &inlet->backlog;
  if (inlet->fd >= 0 && backlog_length(backlog) > 0) {
    size_t written;
    error = write_some(inlet->fd, backlog_first(backlog), backlog_length(backlog), &written);
    backlog_take(backlog, written);
    if (error != 0) inlet_close(inlet);
  }
  close_when_done(inlet);
  grant(inlet);
  return error;
}
