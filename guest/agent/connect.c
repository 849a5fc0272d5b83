#include "connect.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection.h"
#include "limits.h"
#include "operation.h"
#include "ports.h"
#include "protocol.h"
#include "records.h"
#include "stream.h"

struct tcp {
  struct operation operation;
  struct tcp *next, **link; /* in `open_sockets`, until they are closed */
  struct outlet outlet;
  struct inlet inlet; /* its descriptor is the socket, the outlet's a copy */
  uint16_t port;
  bool second_address; /* the first one has refused */
  bool connected;
  bool closed; /* only the reply is missing */
  int error;   /* for the reply */
};

static struct tcp* open_sockets;

static void list(struct tcp* tcp) {
  tcp->next = open_sockets;
  tcp->link = &open_sockets;
  if (open_sockets) open_sockets->link = &tcp->next;
  open_sockets = tcp;
}

static void unlist(struct tcp* tcp) {
  *tcp->link = tcp->next;
  if (tcp->next) tcp->next->link = tcp->link;
}

static bool has_room(struct tcp* tcp) {
  if (connection_room() >= CONNECTION_REPLY_ROOM) return true;
  operation_schedule(&tcp->operation);
  return false;
}

static void reply(struct tcp* tcp) {
  if (!has_room(tcp)) return;
  connection_reply(tcp->operation.id, tcp->error);
  operation_finish(&tcp->operation);
}

static void finish(struct tcp* tcp, int error) {
  inlet_close(&tcp->inlet);
  outlet_close(&tcp->outlet);
  unlist(tcp);
  tcp->closed = true;
  tcp->error = error;
  reply(tcp);
}

// The same for what is not complete, which the peer is told by a reset.
static void abort_connection(struct tcp* tcp, int error) {
  const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
  const int fd = tcp->inlet.fd >= 0 ? tcp->inlet.fd : tcp->outlet.fd;
  if (fd >= 0) (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  finish(tcp, error);
}

union address {
  struct sockaddr any;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
};

static socklen_t loopback(const struct tcp* tcp, union address* address) {
  memset(address, 0, sizeof(*address));
  if (tcp->second_address) {
    address->v6.sin6_family = AF_INET6;
    address->v6.sin6_port = htons(tcp->port);
    address->v6.sin6_addr = in6addr_loopback;
    return sizeof(address->v6);
  }
  address->v4.sin_family = AF_INET;
  address->v4.sin_port = htons(tcp->port);
  address->v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return sizeof(address->v4);
}

// Returns 0 or an errno.
static int open_socket(struct tcp* tcp) {
  const int family = tcp->second_address ? AF_INET6 : AF_INET;
  int fd;
  do {
    fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  } while (fd < 0 && limits_retry());
  if (fd < 0) return errno;
  inlet_open(&tcp->inlet, &tcp->operation, fd, FK_INPUT_WINDOW);
  tcp->inlet.socket = true;
  return 0;
}

// Where nobody listens, the kernel may have given this end the very port that it is to reach: then
// the socket is connected to itself.
static bool is_own_peer(const struct tcp* tcp) {
  union address own = {.any = {0}};
  socklen_t length = sizeof(own);
  if (getsockname(tcp->inlet.fd, &own.any, &length) < 0) return false;
  const in_port_t port = tcp->second_address ? own.v6.sin6_port : own.v4.sin_port;
  return port == htons(tcp->port);
}

// Returns 0 when the socket is connected, EALREADY when it will say so later, or another errno.
static int dial(const struct tcp* tcp) {
  union address address;
  const socklen_t length = loopback(tcp, &address);
  const int fd = tcp->inlet.fd;
  int error = connect(fd, &address.any, length) < 0 ? errno : 0;
  // The first call always says that it is under way. Over the loopback the answer is there then,
  // and a second call gets it.
  if (error == EINPROGRESS) error = connect(fd, &address.any, length) < 0 ? errno : 0;
  return error == 0 && is_own_peer(tcp) ? ECONNREFUSED : error;
}

static int establish(struct tcp* tcp) {
  const int fd = tcp->inlet.fd;
  const int yes = 1;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  // The loop knows one watch for each descriptor, and this has two: for reading and for writing.
  int copy;
  do {
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  } while (copy < 0 && limits_retry());
  if (copy < 0) return errno;
  const int error = outlet_open(&tcp->outlet, &tcp->operation, copy, FK_OUTPUT, OUTLET_SOCKET);
  if (error != 0) return error;
  tcp->connected = true;
  const struct fk_header header = {.type = FK_CONNECTED, .id = tcp->operation.id};
  connection_send(&header, NULL);
  return 0;
}

// This machine has no such address.
static bool is_missing(int error) {
  return error == EAFNOSUPPORT || error == EADDRNOTAVAIL || error == ENETUNREACH;
}

// There is room for a frame.
static void go_on_dialing(struct tcp* tcp) {
  int error = dial(tcp);
  if (error == ECONNREFUSED && !tcp->second_address) {
    inlet_close(&tcp->inlet);
    tcp->second_address = true;
    error = open_socket(tcp);
    if (error == 0) error = dial(tcp);
    if (is_missing(error)) error = ECONNREFUSED;
  }
  if (error == EALREADY) {
    error = inlet_watch(&tcp->inlet);
  } else if (error == 0) {
    error = establish(tcp);
  }
  if (error != 0) finish(tcp, error);
}

static void tcp_run(struct operation* operation) {
  struct tcp* tcp = (struct tcp*)operation;
  if (tcp->closed) {
    reply(tcp);
    return;
  }
  if (!tcp->connected) {
    if (has_room(tcp)) go_on_dialing(tcp);
    return;
  }
  const int error = inlet_pump(&tcp->inlet);
  if (tcp->error == 0) tcp->error = error;
  // What the peer sent before it broke off is still delivered, as far as the window allows.
  const enum progress progress = outlet_pump(&tcp->outlet);
  if (progress == PROGRESS_AGAIN) {
    operation_schedule(operation);
    return;
  }
  if (progress == PROGRESS_FAILED && tcp->error == 0) tcp->error = errno;
  const bool done = progress == PROGRESS_ENDED && inlet_is_done(&tcp->inlet);
  if (tcp->error != 0 || done) finish(tcp, tcp->error);
}

static void tcp_cancel(struct operation* operation, int error) {
  struct tcp* tcp = (struct tcp*)operation;
  if (tcp->closed) return;
  // The peer must not take for complete what lacks bytes.
  const bool lacks = backlog_length(&tcp->inlet.backlog) > 0;
  if (error == ECANCELED && !lacks) {
    finish(tcp, error);
  } else {
    abort_connection(tcp, error);
  }
}

static void tcp_input(struct operation* operation, uint64_t offset, const uint8_t* bytes,
                      size_t count, bool end) {
  struct tcp* tcp = (struct tcp*)operation;
  if (tcp->closed) return;
  const int error = tcp->connected ? inlet_input(&tcp->inlet, offset, bytes, count, end) : EPROTO;
  if (error == EPROTO) {
    tcp_cancel(operation, error);
    return;
  }
  if (tcp->error == 0) tcp->error = error;
  if (end || error != 0) operation_schedule(operation);
}

static void tcp_window(struct operation* operation, uint16_t stream, uint64_t limit) {
  struct tcp* tcp = (struct tcp*)operation;
  if (stream == FK_OUTPUT && !tcp->closed) outlet_window(&tcp->outlet, limit);
}

static const struct operation_type tcp_type = {
    .run = tcp_run, .cancel = tcp_cancel, .input = tcp_input, .window = tcp_window};

static bool parse(uint8_t* payload, size_t bytes, uint32_t* port, uint64_t* output_limit) {
  struct record_reader reader = {payload, payload + bytes};
  struct record record;
  bool malformed;
  while (record_next(&reader, &record, &malformed)) {
    const bool good = record.tag == FK_TAG_PORT           ? record_u32(&record, port)
                      : record.tag == FK_TAG_OUTPUT_LIMIT ? record_u64(&record, output_limit)
                                                          : false;
    if (!good) return false;
  }
  return !malformed && port_is_valid(*port);
}

void connect_request(uint32_t id, uint8_t* payload, size_t bytes) {
  uint32_t port = 0;
  uint64_t output_limit = 0;
  if (!parse(payload, bytes, &port, &output_limit)) {
    connection_reply(id, EPROTO);
    return;
  }
  struct tcp* tcp = operation_new(&tcp_type, id, sizeof(*tcp));
  if (!tcp) {
    connection_reply(id, ENOMEM);
    return;
  }
  tcp->port = (uint16_t)port;
  tcp->inlet.fd = tcp->outlet.fd = -1;
  tcp->outlet.owner = &tcp->operation;
  tcp->outlet.limit = output_limit;
  list(tcp);
  const int error = open_socket(tcp);
  if (error != 0) {
    finish(tcp, error);
  } else {
    go_on_dialing(tcp);
  }
}

void connect_end_all(void) {
  while (open_sockets) abort_connection(open_sockets, ECANCELED);
}
