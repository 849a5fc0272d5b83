// What an operation has to say on FK_OUTPUT a record at a time, within the host's window.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OUTPUT_BYTES (8u * 1024)

struct output {
  uint64_t sent, limit;
  // For the host, not sent yet: buffer[begin, end).
  uint32_t begin, end;
  uint8_t buffer[OUTPUT_BYTES];
};

static inline bool output_empty(const struct output* output) {
  return output->begin == output->end;
}

static inline size_t output_room(const struct output* output) { return OUTPUT_BYTES - output->end; }

// Starts over; nothing is waiting.
static inline void output_clear(struct output* output) { output->begin = output->end = 0; }

// Adds bytes, for which there is room.
void output_put(struct output* output, const void* bytes, size_t count);

// Sends what the window allows.
void output_send(struct output* output, uint32_t id);

// Says that nothing follows.
void output_end(const struct output* output, uint32_t id);

// The window may have moved; false when it has not.
bool output_widen(struct output* output, uint16_t stream, uint64_t limit);
