/* Pseudo terminals: what a command has in place of its pipes. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct terminal_size {
  uint32_t columns, rows; /* 1 to 65,535 each; 0: no terminal */
};

/* Whether both are in range. */
bool terminal_size_is_valid(struct terminal_size size);

/* Makes one: `master` is the agent's side, without blocking, `slave` the
   command's, which belongs to `owner`. Returns 0 or an errno. */
int terminal_open(struct terminal_size size, uid_t owner, int* master, int* slave);

/* Tells the terminal, and whoever is in its foreground, a new size. */
void terminal_resize(int master, struct terminal_size size);

/* Writes to `bytes` what is typed to end the input, and returns how many bytes
   that are: one or two. `partial`: the last line has not been ended. */
size_t terminal_end_of_input(int master, bool partial, uint8_t bytes[2]);
/* Whether a line ends with that byte. */
bool terminal_ends_line(uint8_t byte);
