#include "output.h"

#include <string.h>

#include "connection.h"
#include "protocol.h"

void output_put(struct output* output, const void* bytes, size_t count) {
  if (count > 0) memcpy(output->buffer + output->end, bytes, count);
  output->end += (uint32_t)count;
}

void output_send(struct output* output, uint32_t id) {
  uint64_t count = output->end - output->begin;
  if (count > output->limit - output->sent) count = output->limit - output->sent;
  if (count == 0) return;
  const struct fk_header header = {.payload_bytes = (uint32_t)count,
                                   .type = FK_DATA,
                                   .stream = FK_OUTPUT,
                                   .id = id,
                                   .offset = output->sent};
  connection_send(&header, output->buffer + output->begin);
  output->sent += count;
  output->begin += (uint32_t)count;
}

void output_end(const struct output* output, uint32_t id) {
  const struct fk_header header = {
      .type = FK_END, .stream = FK_OUTPUT, .id = id, .offset = output->sent};
  connection_send(&header, NULL);
}

bool output_widen(struct output* output, uint16_t stream, uint64_t limit) {
  if (stream != FK_OUTPUT || limit <= output->limit) return false;
  output->limit = limit;
  return true;
}
