/* The one event loop of the agent: epoll, single-threaded, nothing blocks. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Descriptors above this cannot be in the loop: three for each command, and
   some for files. */
enum { LOOP_DESCRIPTORS = 16384 };

/* What epoll reports to. Embedded in the object that owns the descriptor. */
struct watch {
  void (*ready)(struct watch* watch, uint32_t events);
};

/* Creates the epoll descriptor and the one for SIGCHLD, and blocks every
   signal. Returns 0 or an errno. */
int loop_create(void);

/* Return 0 or an errno. */
int loop_add(int fd, uint32_t events, struct watch* watch);
int loop_modify(int fd, uint32_t events);

/* Closes a descriptor, whether it is in the loop or not: its watch is not
   called any more. */
void loop_close(int fd);

/* Runs until the control connection is over. */
void loop_run(void);

/* CLOCK_MONOTONIC, in milliseconds. */
uint64_t loop_now_ms(void);
