/* Makes this machine unique after a fork: docs/guest-protocol.md, "Renewal". */
#pragma once

#include <stdbool.h>

/* At boot: makes the generation file, for programs to watch. */
void renew_prepare(void);

/* True when the mailbox has another generation than the agent knows. Needs
   machine_open(). */
bool renew_is_due(void);

/* Makes the steps; hooks and the report follow in later turns of the loop. The
   agent may run first, see machine_run_first(); it does not afterwards. */
void renew_run(void);

/* FK_RENEW. */
void renew_request(void);

/* From renew_run() to the report. */
bool renew_is_running(void);

/* Called in each turn of the loop. */
void renew_turn(void);
/* Until renew_turn() has something to do, in milliseconds; -1: not by itself. */
int renew_wait_ms(void);
