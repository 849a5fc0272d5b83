// Dials the host over vsock.
//
//   dial_host PORT     exits with the errno of connect(2), or 0 when somebody answered
#include <stdint.h>

#include "start.h"

enum { AF_VSOCK = 40, SOCK_STREAM = 1, HOST_CID = 2 };

struct sockaddr_vm {
  uint16_t family;
  uint16_t reserved;
  uint32_t port;
  uint32_t cid;
  uint8_t zero[4];
};

int guest_main(int argc, char** argv) {
  if (argc < 2) return 2;
  const long fd = call3(SYS_SOCKET, AF_VSOCK, SOCK_STREAM, 0);
  if (fd < 0) return (int)-fd;
  const struct sockaddr_vm host = {
      .family = AF_VSOCK, .port = parse_number(argv[1]), .cid = HOST_CID};
  const long result = call3(SYS_CONNECT, fd, (long)&host, sizeof(host));
  return result < 0 ? (int)-result : 0;
}
