// Has a page with an A in it, and a page of its own file, which begins with 0x7f. Each byte of
// input is answered with a line: what is found at the first page's address. An `m` first maps the
// file's page there, which changes a page table and no other page of the program.
#include <stdint.h>

#include "start.h"

enum { O_RDONLY = 0, PAGE = 4096, PROT_READ = 1, PROT_WRITE = 2 };
enum { MAP_PRIVATE = 0x02, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20 };

static long map(long address, long bytes, int protection, int flags, long fd) {
  const long mapped = call6(SYS_MMAP, address, bytes, protection, flags, fd, 0);
  if (mapped < 0 && mapped > -PAGE) finish(2);
  return mapped;
}

int guest_main(int argc, char** argv) {
  (void)argc;
  const long fd = call3(SYS_OPEN, (long)argv[0], O_RDONLY, 0);
  if (fd < 0) return 1;
  // Three pages, so that what is around the one in the middle uses the same page table.
  const long anonymous = map(0, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  for (int page = 0; page < 3; page++) *(volatile char*)(anonymous + page * PAGE) = 'A';
  const long file = map(0, PAGE, PROT_READ, MAP_PRIVATE, fd);
  if (*(volatile char*)file != 0x7f) return 3;

  const long target = anonymous + PAGE;
  char command;
  while (call3(SYS_READ, 0, (long)&command, 1) == 1) {
    if (command == 'm') map(target, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd);
    say_number(*(volatile uint8_t*)target);
    say("\n");
  }
  return 0;
}
