/* The file systems that a Linux program expects, and the loopback interface. */
#pragma once

/* Trouble is logged, not fatal: many programs run without this or that. */
void mounts_create(void);
void loopback_up(void);
