/* How many descriptors the agent may have, and what its commands inherit. */
#pragma once

#include <stdbool.h>

/* After EMFILE: true when the limit has been raised, and trying again makes
   sense. Not done ahead of need: see limits_restore(). */
bool limits_raise(void);

/* In a child before execve: the limit that the agent was started with. Some
   programs close every descriptor up to their limit, one by one. */
void limits_restore(void);
