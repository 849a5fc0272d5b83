/* A command's process group, which can outlive the process that it is named
   after. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct process_group {
  pid_t leader;
  int held; /* pidfd of the leader, -1: none */
};

/* To be called before the leader is reaped, if the group is still of interest
   afterwards: its number could be given to another group. */
void process_group_hold(struct process_group* group);
void process_group_release(struct process_group* group);

void process_group_signal(const struct process_group* group, int number);

/* Sends SIGKILL; true when nobody is left to receive it. `thorough` looks for
   the case that all who are left are zombies that their parents do not reap. */
bool process_group_kill(const struct process_group* group, bool thorough);
