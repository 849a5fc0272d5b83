/* What only PID 1 may do to the machine. machine.c is for guests; in tests on
   the host, host_machine.c stands in for it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "mailbox.h"

/* Where the machine's files are: "" in a guest. */
const char* machine_root(void);

/* Maps doorbell and mailbox, and opens the random device; once is enough.
   Returns 0 or an errno. */
int machine_open(void);

/* The functions below need machine_open(). */

/* Stands still until the host lets go. */
void machine_park(void);
/* Written by the host during machine_park(). */
struct fk_mailbox* machine_mailbox(void);
/* Tells the host that the random pool is that of `generation`. */
void machine_reseeded(uint64_t generation);
/* Credits the kernel's random pool with `entropy`, and has it used at once.
   Returns 0 or an errno. */
int machine_seed(const uint8_t entropy[FK_ENTROPY_BYTES]);

/* Scheduling: before every other program, on the first CPU. */
void machine_run_first(void);
/* Scheduling: as the agent runs otherwise, behind the commands. */
void machine_run_last(void);

uint64_t machine_tsc(void);
/* Return 0 or an errno. */
int machine_set_clock(int64_t realtime_ns);
int machine_set_hostname(const char* name, size_t bytes);
