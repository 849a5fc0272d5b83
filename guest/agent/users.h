/* Who a command runs as: /etc/passwd and /etc/group of the guest, which may say
   anything. */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"

/* A user or a group as the host gave it. */
struct principal {
  bool given;
  const char* name; /* NULL: a number */
  uint32_t id;
};

enum { LOGIN_NAME_BYTES = 256 };

/* What a process becomes, and the variables of its user. */
struct identity {
  bool sets_user, sets_group, sets_groups;
  bool named; /* the user has an entry */
  uid_t uid;
  gid_t gid;
  size_t count; /* of `groups` */
  gid_t groups[FK_MAX_GROUPS];
  char user[sizeof("USER=") + LOGIN_NAME_BYTES];
  char logname[sizeof("LOGNAME=") + LOGIN_NAME_BYTES];
  char home[sizeof("HOME=") + PATH_MAX];
};

struct exec_options;

/* Looks up whom the options name. Returns 0, or an errno with the stage; ENOENT:
   a name is not there. */
int identity_resolve(struct identity* identity, const struct exec_options* options, int* stage);
