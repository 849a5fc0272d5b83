// SPDX-License-Identifier: GPL-2.0
/*
 * Sorts the tables of static keys and static calls in a linked vmlinux, in
 * place. The kernel sorts them at boot unless it finds them sorted; a heap sort
 * of 1,000 entries is 6% of the instructions of a boot.
 *
 * Both tables hold references relative to where they are stored, so an entry
 * that moves has to be rewritten. Usage: sort-tables vmlinux
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* As struct jump_entry (relative form): the key's low two bits are flags. */
struct jump_entry {
  int32_t code;
  int32_t target;
  int64_t key;
};

/* As struct static_call_site: likewise. */
struct static_call_site {
  int32_t code;
  int32_t key;
};

#define KEY_FLAGS 3ul

/* An entry of either table with absolute addresses; `target` of jumps only. */
struct entry {
  uint64_t key;
  uint64_t code;
  uint64_t target;
};

static const char* path;
static unsigned char* image;
static size_t image_bytes;

static _Noreturn void die(const char* what) {
  fprintf(stderr, "sort-tables: %s: %s\n", path, what);
  exit(1);
}

/* Bounds: ends the program unless [offset, offset + bytes) lies in the image. */
static void* at(uint64_t offset, uint64_t bytes) {
  if (offset > image_bytes || bytes > image_bytes - offset) die("truncated");
  return image + offset;
}

static const Elf64_Shdr* section(unsigned int index) {
  const Elf64_Ehdr* header = at(0, sizeof(*header));

  if (index >= header->e_shnum) die("bad section index");
  return at(header->e_shoff + (uint64_t)index * header->e_shentsize, sizeof(Elf64_Shdr));
}

static uint64_t symbol(const char* name) {
  const Elf64_Ehdr* header = at(0, sizeof(*header));
  unsigned int i;

  for (i = 0; i < header->e_shnum; i++) {
    const Elf64_Shdr* symbols = section(i);
    const Elf64_Shdr* names;
    const Elf64_Sym* sym;
    uint64_t count;

    if (symbols->sh_type != SHT_SYMTAB) continue;
    names = section(symbols->sh_link);
    at(names->sh_offset, names->sh_size);
    count = symbols->sh_size / sizeof(*sym);
    sym = at(symbols->sh_offset, symbols->sh_size);
    for (; count > 0; count--, sym++) {
      if (sym->st_name < names->sh_size && !strncmp((char*)image + names->sh_offset + sym->st_name,
                                                    name, names->sh_size - sym->st_name))
        return sym->st_value;
    }
  }
  die(name);
}

/* What the image holds at the virtual addresses [start, stop). */
static void* contents(uint64_t start, uint64_t stop) {
  const Elf64_Ehdr* header = at(0, sizeof(*header));
  unsigned int i;

  for (i = 0; i < header->e_shnum; i++) {
    const Elf64_Shdr* s = section(i);

    if (s->sh_type == SHT_PROGBITS && (s->sh_flags & SHF_ALLOC) && start >= s->sh_addr &&
        start <= stop && stop <= s->sh_addr + s->sh_size)
      return at(s->sh_offset + (start - s->sh_addr), stop - start);
  }
  die("table outside every section");
}

static int compare(const void* a, const void* b) {
  const struct entry *x = a, *y = b;
  uint64_t x_key = x->key & ~KEY_FLAGS, y_key = y->key & ~KEY_FLAGS;

  if (x_key != y_key) return x_key < y_key ? -1 : 1;
  if (x->code != y->code) return x->code < y->code ? -1 : 1;
  return 0;
}

static struct entry* new_entries(uint64_t count) {
  struct entry* entries = calloc(count ? count : 1, sizeof(*entries));

  if (!entries) die("out of memory");
  return entries;
}

/* An address as a reference that is relative to `from`. */
static int32_t relative(uint64_t address, uint64_t from) {
  int64_t distance = (int64_t)(address - from);

  if (distance != (int32_t)distance) die("reference out of range");
  return (int32_t)distance;
}

static void sort_jump_table(void) {
  uint64_t start = symbol("__start___jump_table");
  uint64_t stop = symbol("__stop___jump_table");
  struct jump_entry* table = contents(start, stop);
  uint64_t count = (stop - start) / sizeof(*table), i;
  struct entry* entries = new_entries(count);

  for (i = 0; i < count; i++) {
    uint64_t base = start + i * sizeof(*table);

    entries[i].code = base + (int64_t)table[i].code;
    entries[i].target = base + 4 + (int64_t)table[i].target;
    entries[i].key = base + 8 + (uint64_t)table[i].key;
  }
  qsort(entries, count, sizeof(*entries), compare);
  for (i = 0; i < count; i++) {
    uint64_t base = start + i * sizeof(*table);

    table[i].code = relative(entries[i].code, base);
    table[i].target = relative(entries[i].target, base + 4);
    table[i].key = (int64_t)(entries[i].key - (base + 8));
  }
  free(entries);
}

static void sort_static_calls(void) {
  uint64_t start = symbol("__start_static_call_sites");
  uint64_t stop = symbol("__stop_static_call_sites");
  struct static_call_site* table = contents(start, stop);
  uint64_t count = (stop - start) / sizeof(*table), i;
  struct entry* entries = new_entries(count);

  for (i = 0; i < count; i++) {
    uint64_t base = start + i * sizeof(*table);

    entries[i].code = base + (int64_t)table[i].code;
    entries[i].key = base + 4 + (int64_t)table[i].key;
  }
  qsort(entries, count, sizeof(*entries), compare);
  for (i = 0; i < count; i++) {
    uint64_t base = start + i * sizeof(*table);

    table[i].code = relative(entries[i].code, base);
    table[i].key = relative(entries[i].key, base + 4);
  }
  free(entries);
}

int main(int argc, char** argv) {
  struct stat status;
  int fd;

  if (argc != 2) {
    fprintf(stderr, "usage: sort-tables vmlinux\n");
    return 2;
  }
  path = argv[1];
  fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &status) < 0) die(strerror(errno));
  image_bytes = (size_t)status.st_size;
  image = mmap(NULL, image_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (image == MAP_FAILED) die(strerror(errno));
  if (memcmp(at(0, EI_NIDENT), ELFMAG "\2\1", SELFMAG + 2))
    die("not a little-endian 64-bit ELF file");

  sort_jump_table();
  sort_static_calls();

  if (msync(image, image_bytes, MS_SYNC) < 0) die(strerror(errno));
  return 0;
}
