// Serves TCP connections on 127.0.0.1, many at once. The first byte of each says what for:
//
//   e   sends everything back, this byte as well
//   h   reads to the end, then answers with the number of bytes
//   f   ends what it sends, then reads to the end and says the number of bytes on stdout
//   r   resets the connection
//
//   tcp_server PORT     says "reset" on stdout when a client does that
#include <stdint.h>

#include "start.h"

enum {
  AF_INET = 2,
  SOCK_STREAM = 1,
  SOL_SOCKET = 1,
  SO_REUSEADDR = 2,
  SO_LINGER = 13,
  SHUT_WR = 1,
  POLLIN = 1,
  CLIENTS = 64,
  BACKLOG = 64,
};

struct sockaddr_in {
  uint16_t family;
  uint8_t port[2];
  uint8_t address[4];
  uint8_t zero[8];
};

struct pollfd {
  int fd;
  int16_t events;
  int16_t revents;
};

// The listening socket comes first.
static struct pollfd polled[1 + CLIENTS];
static char modes[1 + CLIENTS];
static long counts[1 + CLIENTS];
static char buffer[65536];

static void write_all(long fd, const char* bytes, long count) {
  while (count > 0) {
    const long written = call3(SYS_WRITE, fd, (long)bytes, count);
    if (written <= 0) return;
    bytes += written;
    count -= written;
  }
}

static void answer_number(long fd, long number) {
  char digits[24];
  char* at = digits + sizeof(digits);
  do {
    *--at = (char)('0' + number % 10);
    number /= 10;
  } while (number != 0);
  write_all(fd, at, digits + sizeof(digits) - at);
}

static void reset(int fd) {
  const int at_once[2] = {1, 0};
  call6(SYS_SETSOCKOPT, fd, SOL_SOCKET, SO_LINGER, (long)at_once, sizeof(at_once), 0);
}

static void drop(int i) {
  call3(SYS_CLOSE, polled[i].fd, 0, 0);
  polled[i].fd = -1;
  modes[i] = 0;
  counts[i] = 0;
}

static void ended(int i) {
  if (modes[i] == 'h') answer_number(polled[i].fd, counts[i]);
  if (modes[i] == 'f') {
    say_number(counts[i]);
    say("\n");
  }
  drop(i);
}

static void serve(int i) {
  const int fd = polled[i].fd;
  const long count = call3(SYS_READ, fd, (long)buffer, sizeof(buffer));
  if (count < 0) {
    say("reset\n");
    drop(i);
    return;
  }
  if (count == 0) {
    ended(i);
    return;
  }
  counts[i] += count;
  if (modes[i] == 0) {
    modes[i] = buffer[0];
    if (modes[i] == 'f') call3(SYS_SHUTDOWN, fd, SHUT_WR, 0);
  }
  if (modes[i] == 'e') write_all(fd, buffer, count);
  if (modes[i] == 'r') {
    reset(fd);
    drop(i);
  }
}

static void take_client(void) {
  const long fd = call3(SYS_ACCEPT, polled[0].fd, 0, 0);
  if (fd < 0) return;
  for (int i = 1; i <= CLIENTS; i++) {
    if (polled[i].fd >= 0) continue;
    polled[i].fd = (int)fd;
    return;
  }
  call3(SYS_CLOSE, fd, 0, 0);
}

int guest_main(int argc, char** argv) {
  if (argc < 2) return 2;
  const unsigned port = parse_number(argv[1]);
  const long listener = call3(SYS_SOCKET, AF_INET, SOCK_STREAM, 0);
  const int yes = 1;
  call6(SYS_SETSOCKOPT, listener, SOL_SOCKET, SO_REUSEADDR, (long)&yes, sizeof(yes), 0);
  const struct sockaddr_in address = {
      .family = AF_INET, .port = {(uint8_t)(port >> 8), (uint8_t)port}, .address = {127, 0, 0, 1}};
  if (call3(SYS_BIND, listener, (long)&address, sizeof(address)) < 0) return 3;
  if (call3(SYS_LISTEN, listener, BACKLOG, 0) < 0) return 4;
  for (int i = 0; i <= CLIENTS; i++) polled[i] = (struct pollfd){.fd = -1, .events = POLLIN};
  polled[0].fd = (int)listener;
  for (;;) {
    if (call3(SYS_POLL, (long)polled, 1 + CLIENTS, -1) < 0) return 5;
    for (int i = 1; i <= CLIENTS; i++) {
      if (polled[i].fd >= 0 && polled[i].revents != 0) serve(i);
    }
    if (polled[0].revents != 0) take_client();
  }
}
