/*
 * The guest's side of the benches: a program that stands at its park, and for
 * each call writes to as many pages of its memory as it is told.
 *
 *   touch PAGES    how many it can be told to write
 *
 * Input and answer of a call are that number, 32 bits, little endian. The pages
 * are every second one of a buffer that is there before the program parks, so
 * that a write finds the page in the guest's page table and, in a fork, is the
 * first to that page of the host's memory.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../guest/agent/doorbell.h"
#include "../../guest/agent/exchange.h"

#define PAGE_BYTES 4096u

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static void* map(int device, enum fk_device_page page, size_t bytes, int protection) {
  void* memory = mmap(NULL, bytes, protection, MAP_SHARED, device, (off_t)(page * PAGE_BYTES));
  if (memory == MAP_FAILED) {
    perror("touch: mmap of /dev/forklet");
    exit(1);
  }
  return memory;
}

int main(int argc, char** argv) {
  const uint32_t pages = argc == 2 ? (uint32_t)atoi(argv[1]) : 0;
  const size_t bytes = (size_t)pages * 2 * PAGE_BYTES + PAGE_BYTES;
  volatile uint8_t* buffer =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (buffer == MAP_FAILED || madvise((void*)buffer, bytes, MADV_POPULATE_WRITE) != 0) {
    perror("touch: memory");
    return 1;
  }
  const int device = open("/dev/forklet", O_RDWR);
  const volatile uint32_t* doorbell = map(device, FK_PAGE_DOORBELL, PAGE_BYTES, PROT_READ);
  struct fk_exchange* exchange =
      map(device, FK_PAGE_EXCHANGE, sizeof *exchange, PROT_READ | PROT_WRITE);
  volatile struct fk_exchange* shared = exchange;

  for (uint32_t written = 0;;) {
    (void)doorbell[FK_DOORBELL_PARK_PROGRAM / sizeof *doorbell];
    switch (shared->state) {
      case FK_EXCHANGE_REQUEST:
        memcpy(&written, exchange->data, sizeof written);
        if (written > pages) written = pages;
        for (uint32_t i = 0; i < written; i++) buffer[(size_t)i * 2 * PAGE_BYTES]++;
        memcpy(exchange->data, &written, sizeof written);
        shared->error = 0;
        shared->output_bytes = sizeof written;
        break;
      case FK_EXCHANGE_YIELD: {
        uint64_t rung;
        if (read(device, &rung, sizeof rung) < 0) perror("touch: read of /dev/forklet");
        break;
      }
      default:
        break;
    }
  }
}
