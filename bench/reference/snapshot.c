#include "snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION 1
#define HEADER_BYTES 32
#define ENTRY_BYTES 32
#define PAGE_BYTES 4096

/* The sections of the state file, in their order; types count from 1. */
enum { CONFIGURATION, CPU, DEVICES, SESSION, MANIFEST, CHUNKS, SECTIONS };

struct bytes {
  const uint8_t* data;
  uint64_t size;
};

void die(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("restore: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(1);
}

static void* allocate(size_t bytes) {
  void* memory = calloc(1, bytes);
  if (memory == NULL) die("out of memory");
  return memory;
}

/* Takes `size` bytes from the front. */
static const uint8_t* take(struct bytes* from, uint64_t size) {
  if (size > from->size) die("state: a section is shorter than what it holds");
  const uint8_t* taken = from->data;
  from->data += size;
  from->size -= size;
  return taken;
}

static uint8_t take_u8(struct bytes* from) { return *take(from, 1); }

static uint32_t take_u32(struct bytes* from) {
  uint32_t value;
  memcpy(&value, take(from, sizeof value), sizeof value);
  return value;
}

static uint64_t take_u64(struct bytes* from) {
  uint64_t value;
  memcpy(&value, take(from, sizeof value), sizeof value);
  return value;
}

/* A byte string: its length in 64 bits, then the bytes. */
static struct bytes take_string(struct bytes* from) {
  const uint64_t size = take_u64(from);
  return (struct bytes){take(from, size), size};
}

/* One of KVM's own structs, as a byte string. */
static void take_struct(struct bytes* from, void* to, size_t size) {
  const struct bytes string = take_string(from);
  if (string.size != size)
    die("state: %llu bytes where KVM's struct has %zu", (unsigned long long)string.size, size);
  memcpy(to, string.data, size);
}

/* XXH64 with seed 0 (https://xxhash.com, doc/xxhash_spec.md). */
static const uint64_t P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F, P3 = 0x165667B19E3779F9,
                      P4 = 0x85EBCA77C2B2AE63, P5 = 0x27D4EB2F165667C5;

static uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

static uint64_t load(const uint8_t* from, size_t size) {
  uint64_t value = 0;
  memcpy(&value, from, size);
  return value;
}

static uint64_t xxh64(const uint8_t* data, uint64_t size) {
  const uint8_t* end = data + size;
  uint64_t hash = P5;
  if (size >= 32) {
    uint64_t lanes[4] = {P1 + P2, P2, 0, 0 - P1};
    for (; end - data >= 32; data += 32) {
      for (int i = 0; i < 4; i++) {
        lanes[i] = rotate(lanes[i] + load(data + 8 * i, 8) * P2, 31) * P1;
      }
    }
    hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    for (int i = 0; i < 4; i++) hash = (hash ^ rotate(lanes[i] * P2, 31) * P1) * P1 + P4;
  }
  hash += size;
  for (; end - data >= 8; data += 8) {
    hash = rotate(hash ^ rotate(load(data, 8) * P2, 31) * P1, 27) * P1 + P4;
  }
  if (end - data >= 4) {
    hash = rotate(hash ^ load(data, 4) * P1, 23) * P2 + P3;
    data += 4;
  }
  for (; data < end; data++) hash = rotate(hash ^ *data * P5, 11) * P1;
  hash = (hash ^ hash >> 33) * P2;
  hash = (hash ^ hash >> 29) * P3;
  return hash ^ hash >> 32;
}

static struct bytes read_file(const char* path) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (file < 0 || fstat(file, &status) != 0) die("%s: %s", path, strerror(errno));
  const uint64_t size = (uint64_t)status.st_size;
  uint8_t* data = allocate(size + 1);
  for (uint64_t done = 0; done < size;) {
    const ssize_t got = read(file, data + done, size - done);
    if (got <= 0) die("%s: %s", path, got < 0 ? strerror(errno) : "truncated");
    done += (uint64_t)got;
  }
  close(file);
  return (struct bytes){data, size};
}

/* Checks the container: header, section table, checksums. */
static void find_sections(struct bytes file, struct bytes sections[SECTIONS]) {
  static const char magic[8] = "FORKLET";
  const size_t table_bytes = SECTIONS * ENTRY_BYTES;
  if (file.size < HEADER_BYTES + table_bytes) die("state: truncated");
  struct bytes header = {file.data, HEADER_BYTES};
  if (memcmp(take(&header, 8), magic, 8) != 0) die("state: no snapshot of forklet");
  const uint32_t version = take_u32(&header);
  if (version != VERSION) die("state: format version %u; this program knows %d", version, VERSION);
  if (take_u32(&header) != SECTIONS) die("state: another number of sections");
  if (take_u64(&header) != file.size) die("state: the file has another size than it says");
  /* Over the header without this field, and the table. */
  uint8_t hashed[HEADER_BYTES - 8 + SECTIONS * ENTRY_BYTES];
  memcpy(hashed, file.data, HEADER_BYTES - 8);
  memcpy(hashed + HEADER_BYTES - 8, file.data + HEADER_BYTES, table_bytes);
  if (take_u64(&header) != xxh64(hashed, sizeof hashed)) die("state: wrong checksum of the header");

  struct bytes table = {file.data + HEADER_BYTES, table_bytes};
  uint64_t next = HEADER_BYTES + table_bytes;
  for (uint32_t i = 0; i < SECTIONS; i++) {
    if (take_u32(&table) != i + 1 || take_u32(&table) != 0 || take_u64(&table) != next) {
      die("state: section %u is not where it belongs", i + 1);
    }
    const uint64_t size = take_u64(&table);
    if (size > file.size - next) die("state: section %u does not fit", i + 1);
    sections[i] = (struct bytes){file.data + next, size};
    if (take_u64(&table) != xxh64(sections[i].data, size)) {
      die("state: wrong checksum of section %u", i + 1);
    }
    next += (size + 7) / 8 * 8;
    if (next > file.size) die("state: section %u is not padded", i + 1);
  }
  if (next != file.size) die("state: bytes behind the last section");
}

static void read_configuration(struct snapshot* snapshot, struct bytes in) {
  snapshot->memory_bytes = take_u64(&in);
  if (take_u32(&in) != 1) die("only snapshots with one vCPU can be restored here");
  const uint64_t regions = take_u64(&in);
  if (regions == 0 || regions > MAX_REGIONS) die("state: impossible number of memory regions");
  snapshot->regions_used = (uint32_t)regions;
  uint64_t next = 0;
  for (uint32_t i = 0; i < regions; i++) {
    struct region* region = &snapshot->regions[i];
    region->start = take_u64(&in);
    region->bytes = take_u64(&in);
    region->file_offset = take_u64(&in);
    if (region->bytes % PAGE_BYTES != 0 || region->file_offset != next ||
        region->bytes > snapshot->memory_bytes - next) {
      die("state: memory region %u is not a part of the file", i);
    }
    next += region->bytes;
  }
  if (in.size != 0 || next != snapshot->memory_bytes) die("state: impossible configuration");
}

static void read_msrs(struct snapshot* snapshot, struct bytes* in) {
  const uint64_t count = take_u64(in);
  if (count > 4096) die("state: %llu MSRs", (unsigned long long)count);
  snapshot->msrs = allocate(sizeof *snapshot->msrs + count * sizeof snapshot->msrs->entries[0]);
  snapshot->msrs->nmsrs = (uint32_t)count;
  for (uint64_t i = 0; i < count; i++) {
    snapshot->msrs->entries[i].index = take_u32(in);
    snapshot->msrs->entries[i].data = take_u64(in);
  }
}

static void read_vcpu(struct snapshot* snapshot, struct bytes* in) {
  take_struct(in, &snapshot->mp_state, sizeof snapshot->mp_state);
  take_struct(in, &snapshot->regs, sizeof snapshot->regs);
  take_struct(in, &snapshot->sregs, sizeof snapshot->sregs);
  const struct bytes xsave = take_string(in);
  if (xsave.size < sizeof(struct kvm_xsave)) die("state: the XSAVE area is too short");
  snapshot->xsave = allocate(xsave.size);
  memcpy(snapshot->xsave, xsave.data, xsave.size);
  take_struct(in, &snapshot->xcrs, sizeof snapshot->xcrs);
  take_struct(in, &snapshot->debugregs, sizeof snapshot->debugregs);
  take_struct(in, &snapshot->lapic, sizeof snapshot->lapic);
  read_msrs(snapshot, in);
  snapshot->tsc = take_u64(in);
  snapshot->tsc_deadline = take_u64(in);
  take_struct(in, &snapshot->events, sizeof snapshot->events);
}

static void read_machine(struct snapshot* snapshot, struct bytes in) {
  if (take_u64(&in) != snapshot->memory_bytes) die("state: two sizes of memory");
  take_u8(&in);  /* Where the guest stands */
  take_u32(&in); /* Which vCPU stands there */
  take_u64(&in); /* The connection to the agent */
  take_u8(&in);  /* Quirks of the host */
  take_u8(&in);
  const size_t cpuid_bytes =
      sizeof *snapshot->cpuid + MAX_CPUID_ENTRIES * sizeof snapshot->cpuid->entries[0];
  snapshot->cpuid = allocate(cpuid_bytes);
  take_struct(&in, snapshot->cpuid, cpuid_bytes);
  if (snapshot->cpuid->nent > MAX_CPUID_ENTRIES) die("state: too many CPUID entries");
  struct bytes irqchips = take_string(&in);
  for (int i = 0; i < IRQCHIPS; i++) {
    memcpy(&snapshot->irqchips[i], take(&irqchips, sizeof snapshot->irqchips[i]),
           sizeof snapshot->irqchips[i]);
  }
  snapshot->clock_ns = take_u64(&irqchips);
  if (irqchips.size != 0) die("state: the interrupt controllers' state is too long");
  if (take_u64(&in) != 1) die("state: two numbers of vCPUs");
  read_vcpu(snapshot, &in);
  /* The devices' state is forklet's own business: they take no part in this. */
}

void snapshot_read(struct snapshot* snapshot, const char* directory) {
  char path[PATH_MAX];
  memset(snapshot, 0, sizeof *snapshot);
  snprintf(path, sizeof path, "%s/state", directory);
  struct bytes sections[SECTIONS];
  const struct bytes file = read_file(path);
  find_sections(file, sections);
  read_configuration(snapshot, sections[CONFIGURATION]);
  read_machine(snapshot, sections[CPU]);
  free((void*)(uintptr_t)file.data);

  snprintf(path, sizeof path, "%s/memory", directory);
  snapshot->memory = open(path, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (snapshot->memory < 0 || fstat(snapshot->memory, &status) != 0) {
    die("%s: %s", path, strerror(errno));
  }
  if ((uint64_t)status.st_size != snapshot->memory_bytes) die("%s: another size", path);
}
