/* What an FK_EXEC asks for. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"
#include "terminal.h"
#include "users.h"

enum { EXEC_LIMITS = 16 };

struct exec_options {
  char** vector; /* spare, arguments, NULL, environment, room for a login, NULL */
  char** argv;
  char** envp;
  size_t variables; /* in `envp` */
  const char* cwd;
  const char* path;
  uint64_t output_limit, error_limit;
  uint32_t flags;
  struct principal user, group;
  struct principal* members; /* supplementary groups */
  size_t member_count;
  int umask; /* -1: not given */
  struct fk_limit limits[EXEC_LIMITS];
  size_t limit_count;
  struct terminal_size terminal;
};

/* Returns 0 or an errno: EPROTO for what makes no sense. Strings stay in the
   payload. To be freed in any case. */
int exec_options_parse(struct exec_options* options, uint8_t* payload, size_t bytes);
void exec_options_free(struct exec_options* options);

/* Whether the command runs as somebody else than the agent. */
bool exec_options_have_identity(const struct exec_options* options);
/* Adds the variables that come from /etc/passwd. */
void exec_options_add_login(struct exec_options* options, struct identity* identity);
