/* How many descriptors the agent may have, and what its commands inherit. */
#pragma once

#include <stdbool.h>

/* After a call that has failed: true when it lacked descriptors, and the limit has
   been raised, so that it is to be tried again. Leaves errno alone. The limit is not
   raised ahead of need: see limits_restore(). */
bool limits_retry(void);

/* In a child before execve: the limit that the agent was started with. Some
   programs close every descriptor up to their limit, one by one. */
void limits_restore(void);
