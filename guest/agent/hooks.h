/* Programs of the image that run after a fork, one after the other. */
#pragma once

#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

/* Most that hooks_put_failure() appends: a name and a status. */
enum { HOOKS_FAILURE_BYTES = 8 + NAME_MAX + 8 + 4 };

/* Runs all hooks for `generation`. One that runs already is let come to its
   end first, and is run again. */
void hooks_start(uint64_t generation);
bool hooks_are_done(void);

/* Ends a hook that has taken too long. Until that is due, in milliseconds; -1:
   none runs. */
void hooks_check_deadline(void);
int hooks_wait_ms(void);

/* A child has exited, and is not reaped yet. True when it was a hook. */
bool hooks_exited(const siginfo_t* info);

/* The first failure: 0 or an errno, and its records. */
int hooks_error(void);
uint8_t* hooks_put_failure(uint8_t* at);
