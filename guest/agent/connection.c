#include "connection.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control.h"
#include "loop.h"

enum {
  HEADER = sizeof(struct fk_header),
  // Two frames of the largest usual size: one that is being parsed, one that arrives.
  RECEIVE_BYTES = 2 * (HEADER + FK_MAX_PAYLOAD),
  SEND_BYTES = 4 * (HEADER + FK_MAX_PAYLOAD) + 8192,
  // Kept free by data for the frames that end an operation.
  ENDS_BYTES = 2048,
  // Most that waits for a frame that is worth a packet.
  LAZY_BYTES = 4096,
  // Requests are taken for so long; then the host hears what has become of those before. To start
  // a program can take a tenth of a second, and one of them after the other can be waiting.
  PARSE_MS = 250,
};

static int socket_fd = -1;
static bool open_now;
static uint32_t interest;

// Bytes from the host that have not been handled: receive[receive_head, receive_tail).
static uint8_t receive[RECEIVE_BYTES];
static size_t receive_head;
static size_t receive_tail;

// An exec request that is too large for the buffer above is gathered here. Without memory for it
// (large_payload is NULL) its bytes are counted and dropped, and the answer is ENOMEM.
static struct fk_header large_header;
static uint8_t* large_payload;
static size_t large_have;
static bool large_pending;

// Frames for the host: send_buffer[send_head, send_tail).
static uint8_t send_buffer[SEND_BYTES];
static size_t send_head;
static size_t send_tail;
static bool send_blocked;
static bool send_due;

static void receive_some(void);

static void socket_ready(struct watch* watch, uint32_t events) {
  (void)watch;
  if (events & EPOLLOUT) send_blocked = false;
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive_some();
}

static struct watch socket_watch = {socket_ready};

int connection_open(int fd) {
  socket_fd = fd;
  interest = EPOLLIN;
  open_now = true;
  return loop_add(fd, interest, &socket_watch);
}

bool connection_is_open(void) { return open_now; }

static void connection_lost(void) { open_now = false; }

size_t connection_room(void) { return SEND_BYTES - (send_tail - send_head); }

static bool can_answer(void) { return connection_room() >= CONNECTION_REPLY_ROOM; }

// True when connection_parse() would find something to do.
static bool frame_is_complete(void) {
  const size_t have = receive_tail - receive_head;
  if (large_pending) return have > 0 || large_have == large_header.payload_bytes;
  if (have < HEADER) return false;
  struct fk_header header;
  memcpy(&header, receive + receive_head, HEADER);
  return header.payload_bytes > FK_MAX_PAYLOAD || have - HEADER >= header.payload_bytes;
}

bool connection_has_work(void) {
  return (send_due && !send_blocked) || (can_answer() && frame_is_complete());
}

// Reads once. More may be there: epoll is level-triggered and says so.
static void receive_some(void) {
  if (frame_is_complete()) return;
  ssize_t count;
  if (large_pending && large_payload) {
    count = recv(socket_fd, large_payload + large_have, large_header.payload_bytes - large_have, 0);
    if (count > 0) large_have += (size_t)count;
  } else {
    if (receive_head > 0) {
      memmove(receive, receive + receive_head, receive_tail - receive_head);
      receive_tail -= receive_head;
      receive_head = 0;
    }
    count = recv(socket_fd, receive + receive_tail, RECEIVE_BYTES - receive_tail, 0);
    if (count > 0) receive_tail += (size_t)count;
  }
  if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) connection_lost();
}

static void begin_large(const struct fk_header* header) {
  large_header = *header;
  large_payload = malloc(header->payload_bytes);
  large_have = 0;
  large_pending = true;
}

// Moves what belongs to the large request out of the receive buffer; handles it when complete.
static void continue_large(void) {
  size_t count = large_header.payload_bytes - large_have;
  if (count > receive_tail - receive_head) count = receive_tail - receive_head;
  if (large_payload) memcpy(large_payload + large_have, receive + receive_head, count);
  receive_head += count;
  large_have += count;
  if (large_have < large_header.payload_bytes) return;
  large_pending = false;
  control_frame(&large_header, large_payload);
  free(large_payload);
  large_payload = NULL;
}

void connection_parse(void) {
  const uint64_t begin_ms = loop_now_ms();
  while (open_now && can_answer()) {
    if (large_pending) {
      continue_large();
      if (large_pending) return;
      continue;
    }
    if (receive_tail - receive_head < HEADER) return;
    struct fk_header header;
    memcpy(&header, receive + receive_head, HEADER);
    if (header.payload_bytes > FK_MAX_PAYLOAD) {
      if (header.type != FK_EXEC || header.payload_bytes > FK_MAX_EXEC_PAYLOAD) {
        connection_fatal("frame is too large");
        return;
      }
      receive_head += HEADER;
      begin_large(&header);
      continue;
    }
    if (receive_tail - receive_head - HEADER < header.payload_bytes) return;
    uint8_t* payload = receive + receive_head + HEADER;
    receive_head += HEADER + header.payload_bytes;
    control_frame(&header, payload);
    if (loop_now_ms() - begin_ms >= PARSE_MS) return;
  }
}

// Where `bytes` more bytes can be put; moves unsent bytes to the front when the end is near.
static uint8_t* send_space(size_t bytes) {
  if (SEND_BYTES - send_tail < bytes) {
    memmove(send_buffer, send_buffer + send_head, send_tail - send_head);
    send_tail -= send_head;
    send_head = 0;
  }
  return send_buffer + send_tail;
}

void connection_send(const struct fk_header* header, const void* payload) {
  const size_t bytes = HEADER + header->payload_bytes;
  if (connection_room() < bytes) {
    connection_lost();
    return;
  }
  uint8_t* at = send_space(bytes);
  memcpy(at, header, HEADER);
  if (header->payload_bytes > 0) memcpy(at + HEADER, payload, header->payload_bytes);
  send_tail += bytes;
  send_due = true;
}

void connection_started(uint32_t id, pid_t pid, bool lazy) {
  const bool due_before = send_due;
  const struct fk_header header = {.type = FK_STARTED, .id = id, .value = (uint32_t)pid};
  connection_send(&header, NULL);
  if (lazy && send_tail - send_head < LAZY_BYTES) send_due = due_before;
}

void connection_reply(uint32_t id, int error) {
  const struct fk_header header = {.type = FK_REPLY, .id = id, .value = (uint32_t)error};
  connection_send(&header, NULL);
}

uint8_t* connection_data_begin(size_t* room) {
  // Tiny data frames are not worth it.
  const size_t reserved = HEADER + ENDS_BYTES;
  const size_t total = connection_room();
  if (total < reserved + 1024) {
    *room = 0;
    return NULL;
  }
  *room = total - reserved;
  if (*room > FK_MAX_PAYLOAD) *room = FK_MAX_PAYLOAD;
  return send_space(HEADER + *room) + HEADER;
}

void connection_data_commit(const struct fk_header* header) {
  memcpy(send_buffer + send_tail, header, HEADER);
  send_tail += HEADER + header->payload_bytes;
  send_due = true;
}

static void update_interest(void) {
  uint32_t wanted = send_blocked ? EPOLLOUT : 0;
  // While the host does not take answers, no more requests are read.
  if (can_answer()) wanted |= EPOLLIN;
  if (wanted == interest) return;
  interest = wanted;
  if (loop_modify(socket_fd, interest) != 0) connection_lost();
}

void connection_flush(void) {
  while (send_due && !send_blocked) {
    const size_t bytes = send_tail - send_head;
    const ssize_t count = send(socket_fd, send_buffer + send_head, bytes, MSG_NOSIGNAL);
    if (count < 0 && errno == EAGAIN) {
      send_blocked = true;
    } else if (count < 0 && errno != EINTR) {
      connection_lost();
      return;
    } else if (count > 0) {
      send_head += (size_t)count;
      send_due = send_head < send_tail;
    }
  }
  if (send_head == send_tail) send_head = send_tail = 0;
  if (open_now) update_interest();
}

// Waits for events of the socket, or for `ms`. False when the connection is over.
static bool wait_for_socket(short events, int ms) {
  struct pollfd wait = {.fd = socket_fd, .events = events};
  return poll(&wait, 1, ms) <= 0 || !(wait.revents & (POLLERR | POLLHUP | POLLNVAL));
}

void connection_drain(void) {
  enum { LOOK_MS = 1, UNKNOWN_MS = 10 };
  send_due = send_head < send_tail;
  connection_flush();
  while (open_now && send_due) {
    if (!wait_for_socket(POLLOUT, -1)) connection_lost();
    send_blocked = false;
    connection_flush();
  }
  // The socket has taken it, but a vsock hands packets to its device by a thread of the kernel's.
  int unsent = 0;
  while (open_now) {
    if (ioctl(socket_fd, TIOCOUTQ, &unsent) < 0) {
      // Linux before 6.12 cannot tell: let the thread run.
      wait_for_socket(0, UNKNOWN_MS);
      return;
    }
    if (unsent == 0) return;
    if (!wait_for_socket(0, LOOK_MS)) connection_lost();
  }
}

void connection_fatal(const char* reason) {
  const struct fk_header header = {.payload_bytes = (uint32_t)strlen(reason), .type = FK_FATAL};
  if (connection_room() >= HEADER + header.payload_bytes) connection_send(&header, reason);
  connection_flush();
  connection_lost();
}
