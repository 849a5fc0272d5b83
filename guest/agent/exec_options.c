#include "exec_options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "records.h"
#include "spawn.h"

enum { LOGIN_VARIABLES = 3 };

struct counts {
  size_t args, variables, members;
};

// False when the records are malformed.
static bool count_records(uint8_t* payload, size_t bytes, struct counts* counts) {
  struct record_reader reader = {payload, payload + bytes};
  struct record record;
  bool malformed;
  *counts = (struct counts){0};
  while (record_next(&reader, &record, &malformed)) {
    if (record.tag == FK_TAG_ARG) counts->args++;
    if (record.tag == FK_TAG_ENV) counts->variables++;
    if (record.tag == FK_TAG_MEMBER_NAME || record.tag == FK_TAG_MEMBER_ID) counts->members++;
  }
  return !malformed;
}

// Where the next string of each kind goes.
struct places {
  char** arg;
  char** variable;
  struct principal* member;
};

static bool take_name(struct principal* principal, const struct record* record) {
  principal->given = true;
  return (principal->name = record_string(record)) != NULL;
}

static bool take_id(struct principal* principal, const struct record* record) {
  principal->given = true;
  principal->name = NULL;
  return record_u32(record, &principal->id) && principal->id != UINT32_MAX;
}

static bool take_umask(struct exec_options* options, const struct record* record) {
  uint32_t value;
  if (!record_u32(record, &value) || value > 0777) return false;
  options->umask = (int)value;
  return true;
}

static bool take_limit(struct exec_options* options, const struct record* record) {
  if (options->limit_count == EXEC_LIMITS || record->length != sizeof(struct fk_limit)) {
    return false;
  }
  struct fk_limit* limit = &options->limits[options->limit_count++];
  memcpy(limit, record->bytes, sizeof(*limit));
  return limit->zero == 0;
}

static bool take_terminal(struct exec_options* options, const struct record* record) {
  if (record->length != sizeof(options->terminal)) return false;
  memcpy(&options->terminal, record->bytes, sizeof(options->terminal));
  return terminal_size_is_valid(options->terminal);
}

static bool take_variable(struct exec_options* options, const struct record* record,
                          struct places* places) {
  char* text = record_string(record);
  *places->variable++ = text;
  if (text && strncmp(text, "PATH=", 5) == 0) options->path = text + 5;
  return text != NULL;
}

static bool take_record(struct exec_options* options, const struct record* record,
                        struct places* places) {
  switch (record->tag) {
    case FK_TAG_ARG:
      return (*places->arg++ = record_string(record)) != NULL;
    case FK_TAG_ENV:
      return take_variable(options, record, places);
    case FK_TAG_CWD:
      return (options->cwd = record_string(record)) != NULL;
    case FK_TAG_OUTPUT_LIMIT:
      return record_u64(record, &options->output_limit);
    case FK_TAG_ERROR_LIMIT:
      return record_u64(record, &options->error_limit);
    case FK_TAG_FLAGS:
      return record_u32(record, &options->flags);
    case FK_TAG_USER_NAME:
      return take_name(&options->user, record);
    case FK_TAG_USER_ID:
      return take_id(&options->user, record);
    case FK_TAG_GROUP_NAME:
      return take_name(&options->group, record);
    case FK_TAG_GROUP_ID:
      return take_id(&options->group, record);
    case FK_TAG_MEMBER_NAME:
      return take_name(places->member++, record);
    case FK_TAG_MEMBER_ID:
      return take_id(places->member++, record);
    case FK_TAG_UMASK:
      return take_umask(options, record);
    case FK_TAG_LIMIT:
      return take_limit(options, record);
    case FK_TAG_TERMINAL:
      return take_terminal(options, record);
    default:
      return false;
  }
}

// Whether what was taken goes together.
static bool make_sense(const struct exec_options* options) {
  const uint32_t login = FK_EXEC_HOME | FK_EXEC_USER | FK_EXEC_LOGNAME;
  const uint32_t outputs = options->flags & (FK_EXEC_STDOUT | FK_EXEC_STDERR);
  if (options->terminal.columns > 0 && outputs != FK_EXEC_STDOUT) return false;
  if (options->member_count > 0 && !(options->flags & FK_EXEC_GROUPS)) return false;
  return options->user.given || !(options->flags & login);
}

int exec_options_parse(struct exec_options* options, uint8_t* payload, size_t bytes) {
  *options = (struct exec_options){.umask = -1, .path = SPAWN_DEFAULT_PATH};
  struct counts counts;
  if (!count_records(payload, bytes, &counts) || counts.args == 0) return EPROTO;
  if (counts.members > FK_MAX_GROUPS) return EPROTO;
  options->vector = calloc(counts.args + counts.variables + LOGIN_VARIABLES + 3, sizeof(char*));
  if (!options->vector) return ENOMEM;
  if (counts.members > 0) {
    options->members = calloc(counts.members, sizeof(*options->members));
    if (!options->members) return ENOMEM;
  }
  options->argv = options->vector + 1;
  options->envp = options->argv + counts.args + 1;
  options->variables = counts.variables;
  options->member_count = counts.members;
  struct places places = {options->argv, options->envp, options->members};
  struct record_reader reader = {payload, payload + bytes};
  struct record record;
  bool malformed;
  while (record_next(&reader, &record, &malformed)) {
    if (!take_record(options, &record, &places)) return EPROTO;
  }
  return make_sense(options) ? 0 : EPROTO;
}

void exec_options_free(struct exec_options* options) {
  free(options->vector);
  free(options->members);
}

bool exec_options_have_identity(const struct exec_options* options) {
  return options->user.given || options->group.given || (options->flags & FK_EXEC_GROUPS) != 0;
}

void exec_options_add_login(struct exec_options* options, struct identity* identity) {
  char** variable = options->envp + options->variables;
  if (options->flags & FK_EXEC_HOME) *variable++ = identity->home;
  // A number without an entry has no name.
  if (!identity->named) return;
  if (options->flags & FK_EXEC_USER) *variable++ = identity->user;
  if (options->flags & FK_EXEC_LOGNAME) *variable++ = identity->logname;
}
