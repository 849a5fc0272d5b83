#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "exec_options.h"

// Larger files are refused: a lookup that saw the beginning alone could be wrong.
enum { DATABASE_LIMIT = 1024 * 1024 };

enum { PASSWD_FIELDS = 7, GROUP_FIELDS = 4 };

struct text {
  const char* at; /* NULL: nothing is left */
  const char* end;
};

// A file of lines, in memory.
struct database {
  char* bytes;
  struct text lines;
};

// Returns 0 or an errno. A file that is not there is empty.
static int read_database(struct database* database, const char* path) {
  *database = (struct database){0};
  // Without blocking: what is there may be a FIFO.
  const int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT ? 0 : errno;
  struct stat status;
  int error = fstat(fd, &status) < 0 ? errno : 0;
  if (error == 0 && !S_ISREG(status.st_mode)) error = EINVAL;
  if (error == 0 && status.st_size > DATABASE_LIMIT) error = EFBIG;
  if (error == 0) {
    const size_t size = (size_t)status.st_size;
    database->bytes = malloc(size + 1);
    const ssize_t count = database->bytes ? read(fd, database->bytes, size) : -1;
    if (count < 0) error = database->bytes ? errno : ENOMEM;
    if (count >= 0) database->lines = (struct text){database->bytes, database->bytes + count};
  }
  close(fd);
  return error;
}

static void free_database(struct database* database) { free(database->bytes); }

// Cuts off what is before the next separator. False when nothing is left.
static bool cut(struct text* rest, char separator, struct text* piece) {
  if (!rest->at) return false;
  const char* found = memchr(rest->at, separator, (size_t)(rest->end - rest->at));
  *piece = (struct text){rest->at, found ? found : rest->end};
  rest->at = found ? found + 1 : NULL;
  return true;
}

static size_t length(struct text text) { return (size_t)(text.end - text.at); }

static bool is(struct text text, const char* string) {
  return length(text) == strlen(string) && memcmp(text.at, string, length(text)) == 0;
}

// False for what is no number of a user or group.
static bool number(struct text text, uint32_t* value) {
  enum { DIGITS = 10 };
  if (length(text) == 0 || length(text) > DIGITS) return false;
  uint64_t sum = 0;
  for (const char* at = text.at; at < text.end; at++) {
    if (*at < '0' || *at > '9') return false;
    sum = sum * 10 + (uint64_t)(*at - '0');
  }
  *value = (uint32_t)sum;
  return sum < UINT32_MAX;
}

// The next line with that many fields. False at the end.
static bool next_entry(struct text* lines, struct text* fields, int count) {
  struct text line;
  while (cut(lines, '\n', &line)) {
    int found = 0;
    while (found < count && cut(&line, ':', &fields[found])) found++;
    if (found == count) return true;
  }
  return false;
}

static bool matches(const struct principal* principal, struct text name, uint32_t id) {
  return principal->name ? is(name, principal->name) : principal->id == id;
}

static void set_login(struct identity* identity, struct text name, struct text home) {
  const int name_length = (int)length(name);
  snprintf(identity->user, sizeof(identity->user), "USER=%.*s", name_length, name.at);
  snprintf(identity->logname, sizeof(identity->logname), "LOGNAME=%.*s", name_length, name.at);
  // An empty directory is the root, as for login(1).
  if (length(home) > 0) {
    snprintf(identity->home, sizeof(identity->home), "HOME=%.*s", (int)length(home), home.at);
  }
}

// Returns 0 or an errno.
static int find_user(struct identity* identity, const struct principal* user) {
  struct database passwd;
  const int error = read_database(&passwd, "/etc/passwd");
  struct text fields[PASSWD_FIELDS];
  while (error == 0 && !identity->named && next_entry(&passwd.lines, fields, PASSWD_FIELDS)) {
    uint32_t uid;
    uint32_t gid;
    if (!number(fields[2], &uid) || !number(fields[3], &gid)) continue;
    if (!matches(user, fields[0], uid) || length(fields[5]) >= PATH_MAX) continue;
    if (length(fields[0]) == 0 || length(fields[0]) > LOGIN_NAME_BYTES) continue;
    identity->named = true;
    identity->uid = uid;
    identity->gid = gid;
    set_login(identity, fields[0], fields[5]);
  }
  free_database(&passwd);
  if (error != 0 || identity->named) return error;
  if (user->name) return ENOENT;
  identity->uid = identity->gid = user->id;
  return 0;
}

// Returns 0 or an errno: ENOENT for a name that is not there.
static int find_group(const struct database* groups, const struct principal* group, gid_t* gid) {
  *gid = group->id;
  if (!group->name) return 0;
  struct text lines = groups->lines;
  struct text fields[GROUP_FIELDS];
  while (next_entry(&lines, fields, GROUP_FIELDS)) {
    if (is(fields[0], group->name) && number(fields[2], gid)) return 0;
  }
  return ENOENT;
}

static int add_group(struct identity* identity, gid_t gid) {
  if (identity->count == FK_MAX_GROUPS) return E2BIG;
  identity->groups[identity->count++] = gid;
  return 0;
}

// The groups that list the user, besides its own. Returns 0 or an errno.
static int find_memberships(struct identity* identity, const struct database* groups) {
  const char* name = identity->user + strlen("USER=");
  struct text lines = groups->lines;
  struct text fields[GROUP_FIELDS];
  while (next_entry(&lines, fields, GROUP_FIELDS)) {
    gid_t gid;
    if (!number(fields[2], &gid) || gid == identity->gid) continue;
    struct text member;
    while (cut(&fields[3], ',', &member)) {
      if (!is(member, name)) continue;
      if (add_group(identity, gid) != 0) return E2BIG;
      break;
    }
  }
  return 0;
}

static int find_members(struct identity* identity, const struct database* groups,
                        const struct exec_options* options) {
  for (size_t i = 0; i < options->member_count; i++) {
    gid_t gid;
    const int error = find_group(groups, &options->members[i], &gid);
    if (error != 0) return error;
    identity->groups[identity->count++] = gid;
  }
  return 0;
}

int identity_resolve(struct identity* identity, const struct exec_options* options, int* stage) {
  const bool explicit = (options->flags & FK_EXEC_GROUPS) != 0;
  // Not all of it, which has the size of a few pages.
  identity->named = false;
  identity->count = 0;
  identity->sets_user = options->user.given;
  identity->sets_group = options->user.given || options->group.given;
  identity->sets_groups = explicit;
  strcpy(identity->home, "HOME=/");
  *stage = FK_STAGE_USER;
  int error = options->user.given ? find_user(identity, &options->user) : 0;
  if (error != 0) return error;
  // Root has no more groups than the agent, which nobody has given any.
  if (options->user.given && !explicit && identity->uid != 0) identity->sets_groups = true;

  const bool lists = explicit ? options->member_count > 0 : identity->named;
  struct database groups = {0};
  *stage = options->group.given ? FK_STAGE_GROUP : FK_STAGE_GROUPS;
  if (options->group.name || (identity->sets_groups && lists)) {
    error = read_database(&groups, "/etc/group");
  }
  if (error == 0 && options->group.given) {
    error = find_group(&groups, &options->group, &identity->gid);
  }
  // The user's own group is among them, as with initgroups(3).
  if (identity->sets_groups && !explicit) identity->groups[identity->count++] = identity->gid;
  if (error == 0 && identity->sets_groups && lists) {
    *stage = FK_STAGE_GROUPS;
    error =
        explicit ? find_members(identity, &groups, options) : find_memberships(identity, &groups);
  }
  free_database(&groups);
  return error;
}
