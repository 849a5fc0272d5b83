#include "ports.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connection.h"
#include "files.h"
#include "loop.h"
#include "operation.h"
#include "protocol.h"
#include "records.h"

// Why not try to connect: a server would see connections that say nothing, and one that takes a
// single connection would be used up. The kernel's list of sockets has those that listen first.

struct port_wait {
  struct operation operation;
  struct port_wait *next, **link; /* in `waits`, until the reply */
  uint16_t port;
  uint32_t pause_ms;   /* before the next look; doubles */
  uint32_t longest_ms; /* up to this */
  uint64_t look_at_ms;
  bool ended; /* by the renewal of this machine */
};

static struct port_wait* waits;

// From the last look: a bit for each port that something listens at.
static uint8_t listening[65536 / 8];

// Beyond any line of the kernel's: one for IPv6 has about 180 bytes.
enum { LINE_BYTES = 256 };

static void finish(struct port_wait* wait, int error) {
  *wait->link = wait->next;
  if (wait->next) wait->next->link = wait->link;
  connection_reply(wait->operation.id, error);
  operation_finish(&wait->operation);
}

// Whether a connection to 127.0.0.1 or ::1 gets there. Addresses are words of four bytes in the
// order of this machine, in hexadecimal.
static bool is_reachable(const char* address, size_t digits) {
  static const char* const reachable[] = {
      "00000000",
      "0100007F",
      "00000000000000000000000000000000",
      "00000000000000000000000001000000",
      "0000000000000000FFFF000000000000",
      "0000000000000000FFFF00000100007F",
  };
  for (size_t i = 0; i < sizeof(reachable) / sizeof(*reachable); i++) {
    if (strlen(reachable[i]) == digits && memcmp(reachable[i], address, digits) == 0) return true;
  }
  return false;
}

// "   0: 0100007F:1F90 00000000:0000 0A ...": number, own address, peer's address, state. False
// when no line that follows is one of a socket that listens.
static bool take_line(const char* line) {
  enum { LISTEN = 0x0A };
  const char* own = strchr(line, ':');
  if (!own) return true;  // The heading.
  own += strspn(own, ": ");
  const size_t digits = strcspn(own, ":");
  if (own[digits] == 0) return false;
  char* end;
  const unsigned long port = strtoul(own + digits + 1, &end, 16);
  end += strspn(end, " ");
  end += strcspn(end, " ");
  if (strtoul(end, NULL, 16) != LISTEN) return false;
  if (port <= 65535 && is_reachable(own, digits)) {
    listening[port / 8] |= (uint8_t)(1u << port % 8);
  }
  return true;
}

// Returns 0 or an errno.
static int look_into(const char* path) {
  const int fd = file_open(path, O_RDONLY, 0);
  if (fd < 0) return errno;
  char line[LINE_BYTES];
  size_t length = 0;
  bool more = true;
  ssize_t count = 0;
  while (more) {
    char buffer[4096];
    count = read(fd, buffer, sizeof(buffer));
    if (count <= 0) break;
    for (ssize_t i = 0; i < count && more; i++) {
      if (buffer[i] != '\n') {
        if (length < sizeof(line) - 1) line[length++] = buffer[i];
        continue;
      }
      line[length] = 0;
      length = 0;
      more = take_line(line);
    }
  }
  const int error = count < 0 ? errno : 0;
  close(fd);
  return error;
}

// Returns 0 or an errno.
static int look(void) {
  memset(listening, 0, sizeof(listening));
  const int error = look_into("/proc/net/tcp");
  if (error != 0) return error;
  const int error6 = look_into("/proc/net/tcp6");
  return error6 == ENOENT ? 0 : error6;
}

static bool is_listening(uint16_t port) { return (listening[port / 8] >> port % 8 & 1) != 0; }

static bool look_is_due(uint64_t now) {
  for (const struct port_wait* wait = waits; wait; wait = wait->next) {
    if (!wait->ended && wait->look_at_ms <= now) return true;
  }
  return false;
}

static void pause_before_next_look(struct port_wait* wait, uint64_t now) {
  wait->look_at_ms = now + wait->pause_ms;
  const bool longest = wait->pause_ms > wait->longest_ms / 2;
  wait->pause_ms = longest ? wait->longest_ms : wait->pause_ms * 2;
}

void ports_turn(void) {
  if (ports_wait_ms() != 0) return;
  const uint64_t now = loop_now_ms();
  const bool looked = look_is_due(now);
  const int error = looked ? look() : 0;
  struct port_wait* next;
  for (struct port_wait* wait = waits; wait; wait = next) {
    next = wait->next;
    const bool over = wait->ended || (looked && (error != 0 || is_listening(wait->port)));
    if (over && connection_room() >= CONNECTION_REPLY_ROOM) {
      finish(wait, wait->ended ? ECANCELED : error);
    } else if (wait->look_at_ms <= now) {
      pause_before_next_look(wait, now);
    }
  }
}

int ports_wait_ms(void) {
  if (!waits) return -1;
  uint64_t first = UINT64_MAX;
  for (const struct port_wait* wait = waits; wait; wait = wait->next) {
    if (wait->look_at_ms < first) first = wait->look_at_ms;
  }
  const uint64_t now = loop_now_ms();
  return first > now ? (int)(first - now) : 0;
}

static void wait_run(struct operation* operation) { (void)operation; }

static void wait_cancel(struct operation* operation, int error) {
  finish((struct port_wait*)operation, error);
}

static const struct operation_type wait_type = {.run = wait_run, .cancel = wait_cancel};

static bool parse(uint8_t* payload, size_t bytes, uint32_t* port, uint32_t* interval_ms) {
  struct record_reader reader = {payload, payload + bytes};
  struct record record;
  bool malformed;
  while (record_next(&reader, &record, &malformed)) {
    const bool good = record.tag == FK_TAG_PORT       ? record_u32(&record, port)
                      : record.tag == FK_TAG_INTERVAL ? record_u32(&record, interval_ms)
                                                      : false;
    if (!good) return false;
  }
  return !malformed && port_is_valid(*port) && *interval_ms >= 1 && *interval_ms <= INT32_MAX;
}

void port_wait_request(uint32_t id, uint8_t* payload, size_t bytes) {
  uint32_t port = 0;
  uint32_t interval_ms = FK_LONGEST_LOOK_MS;
  if (!parse(payload, bytes, &port, &interval_ms)) {
    connection_reply(id, EPROTO);
    return;
  }
  struct port_wait* wait = operation_new(&wait_type, id, sizeof(*wait));
  if (!wait) {
    connection_reply(id, ENOMEM);
    return;
  }
  wait->port = (uint16_t)port;
  wait->longest_ms = interval_ms;
  wait->pause_ms = interval_ms < FK_FIRST_LOOK_MS ? interval_ms : FK_FIRST_LOOK_MS;
  // The first look is in this turn: `look_at_ms` has passed.
  wait->next = waits;
  wait->link = &waits;
  if (waits) waits->link = &wait->next;
  waits = wait;
}

void ports_end_all(void) {
  for (struct port_wait* wait = waits; wait; wait = wait->next) {
    wait->ended = true;
    wait->look_at_ms = 0;
  }
}
