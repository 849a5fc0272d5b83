#include "records.h"

#include <string.h>

#include "protocol.h"

bool record_next(struct record_reader* reader, struct record* record, bool* malformed) {
  *malformed = false;
  const size_t left = (size_t)(reader->end - reader->at);
  if (left == 0) return false;
  struct fk_record header;
  if (left < sizeof(header)) {
    *malformed = true;
    return false;
  }
  memcpy(&header, reader->at, sizeof(header));
  if (header.zero != 0 || header.length > left - sizeof(header)) {
    *malformed = true;
    return false;
  }
  record->tag = header.tag;
  record->length = header.length;
  record->bytes = reader->at + sizeof(header);
  reader->at = record->bytes + header.length;
  return true;
}

char* record_string(const struct record* record) {
  if (record->length > 0 && memchr(record->bytes, 0, record->length)) return NULL;
  // One byte down, into the record's header, which has been read: so the terminator needs no room
  // behind the record, where the next one begins.
  memmove(record->bytes - 1, record->bytes, record->length);
  record->bytes[(ptrdiff_t)record->length - 1] = 0;
  return (char*)record->bytes - 1;
}

bool record_u32(const struct record* record, uint32_t* value) {
  if (record->length != sizeof(*value)) return false;
  memcpy(value, record->bytes, sizeof(*value));
  return true;
}

bool record_u64(const struct record* record, uint64_t* value) {
  if (record->length != sizeof(*value)) return false;
  memcpy(value, record->bytes, sizeof(*value));
  return true;
}

uint8_t* record_put(uint8_t* at, uint16_t tag, const void* bytes, size_t length) {
  const struct fk_record header = {.tag = tag, .length = (uint32_t)length};
  memcpy(at, &header, sizeof(header));
  memcpy(at + sizeof(header), bytes, length);
  return at + sizeof(header) + length;
}

uint8_t* record_put_u32(uint8_t* at, uint16_t tag, uint32_t value) {
  return record_put(at, tag, &value, sizeof(value));
}
