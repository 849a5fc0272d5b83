/* Records inside payloads: see protocol.h. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct record {
  uint16_t tag;
  uint32_t length;
  uint8_t* bytes;
};

struct record_reader {
  uint8_t* at;
  uint8_t* end;
};

/* Reads the next record; false at the end, or with `*malformed` set. */
bool record_next(struct record_reader* reader, struct record* record, bool* malformed);

/* The record's bytes as a string, NUL-terminated in place over its own header,
   once a record; NULL when there is a NUL inside. Invalidates `bytes`. */
char* record_string(const struct record* record);

/* False when the record has another size. */
bool record_u32(const struct record* record, uint32_t* value);
bool record_u64(const struct record* record, uint64_t* value);

/* Appends a record at `at`; returns the position after it. */
uint8_t* record_put(uint8_t* at, uint16_t tag, const void* bytes, size_t length);
uint8_t* record_put_u32(uint8_t* at, uint16_t tag, uint32_t value);
