/* A cgroup of a command's own: whatever the command starts is in it, also what
   leaves the process group and the session. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct process_tree {
  uint64_t number; /* names the cgroup; 0: none */
  int kill;        /* its cgroup.kill */
};

/* Makes one. A process enters that writes "0" to `*enter`, which the caller
   closes. Returns 0 or an errno, EOPNOTSUPP without cgroup2. */
int process_tree_create(struct process_tree* tree, int* enter);

void process_tree_signal_kill(const struct process_tree* tree);
/* Kills everything; true when nothing is left, zombies aside. */
bool process_tree_kill(const struct process_tree* tree);

/* Lets go of it: it is removed when the last process has gone. */
void process_tree_release(struct process_tree* tree);

/* Some process has been reaped: removes what has become empty. */
void process_tree_sweep(void);
