#include "control.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "connect.h"
#include "connection.h"
#include "exec.h"
#include "files.h"
#include "operation.h"
#include "park.h"
#include "ports.h"
#include "records.h"
#include "renew.h"

#ifndef FK_AGENT_VERSION
#error "FK_AGENT_VERSION comes from the build script"
#endif

void control_hello(void) {
  struct utsname name;
  if (uname(&name) < 0) name.release[0] = 0;
  uint8_t payload[sizeof(name.release) + 128];
  uint8_t* end = record_put(payload, FK_TAG_KERNEL, name.release, strlen(name.release));
  end = record_put(end, FK_TAG_AGENT, FK_AGENT_VERSION, strlen(FK_AGENT_VERSION));
  const struct fk_header header = {
      .payload_bytes = (uint32_t)(end - payload), .type = FK_HELLO, .value = FK_PROTOCOL_VERSION};
  connection_send(&header, payload);
}

static int configure(uint8_t* payload, size_t bytes) {
  struct record_reader reader = {payload, payload + bytes};
  struct record record;
  bool malformed;
  while (record_next(&reader, &record, &malformed)) {
    if (record.tag != FK_TAG_HOSTNAME) return EPROTO;
    if (sethostname((const char*)record.bytes, record.length) < 0) return errno;
  }
  return malformed ? EPROTO : 0;
}

static void request(const struct fk_header* header, uint8_t* payload) {
  const size_t bytes = header->payload_bytes;
  if (operation_find(header->id)) {
    // A reply to either would be taken for the reply to the other.
    connection_fatal("operation id is in use");
  } else if (bytes > 0 && !payload) {
    connection_reply(header->id, ENOMEM);
  } else if (header->type == FK_PARK) {
    park_request(header->id, header->value);
  } else if (header->type == FK_PING) {
    connection_reply(header->id, 0);
  } else if (header->type == FK_CONFIGURE) {
    connection_reply(header->id, configure(payload, bytes));
  } else if (operations_full()) {
    connection_reply(header->id, EAGAIN);
  } else if (header->type == FK_EXEC) {
    exec_request(header->id, payload, bytes);
  } else if (header->type == FK_FILE) {
    file_request(header->id, header->value, payload, bytes);
  } else if (header->type == FK_CONNECT) {
    connect_request(header->id, payload, bytes);
  } else if (header->type == FK_WAIT_PORT) {
    port_wait_request(header->id, payload, bytes);
  } else {
    connection_reply(header->id, EPROTO);
  }
}

// Frames for an operation that is over are not errors: they have crossed its reply on the way.
static void to_operation(const struct fk_header* header, const uint8_t* payload) {
  struct operation* operation = operation_find(header->id);
  if (!operation) return;
  const struct operation_type* type = operation->type;
  switch (header->type) {
    case FK_SIGNAL:
      if (type->signal) type->signal(operation, header->value);
      return;
    case FK_RESIZE:
      if (type->resize) {
        type->resize(operation, (uint16_t)header->value, (uint16_t)(header->value >> 16));
      }
      return;
    case FK_CANCEL:
      type->cancel(operation, header->value == FK_CANCEL_RESET ? ECONNRESET : ECANCELED);
      return;
    case FK_WINDOW:
      if (type->window) type->window(operation, header->stream, header->offset);
      return;
    default:
      break;
  }
  if (!type->input || header->stream != FK_INPUT) {
    type->cancel(operation, EPROTO);
    return;
  }
  const bool end = header->type == FK_END;
  type->input(operation, header->offset, payload, header->payload_bytes, end);
}

void control_frame(const struct fk_header* header, uint8_t* payload) {
  switch (header->type) {
    case FK_SIGNAL:
    case FK_RESIZE:
    case FK_CANCEL:
    case FK_DATA:
    case FK_END:
    case FK_WINDOW:
      to_operation(header, payload);
      return;
    case FK_RENEW:
      renew_request();
      return;
    default:
      request(header, payload);
  }
}
