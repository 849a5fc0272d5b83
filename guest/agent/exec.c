#include "exec.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "connection.h"
#include "exec_options.h"
#include "hooks.h"
#include "limits.h"
#include "operation.h"
#include "process_group.h"
#include "process_tree.h"
#include "protocol.h"
#include "records.h"
#include "spawn.h"
#include "stream.h"
#include "users.h"

enum {
  REAPED_PER_TURN = 64,
  // Between looks at a group that is being killed; doubles from the first to the second.
  FIRST_LOOK_MS = 10,
  LAST_LOOK_MS = 320,
  // A group that SIGKILL has not removed by then never goes (a task stuck in the kernel).
  KILL_DEADLINE_MS = 20000,
};

struct exec {
  struct operation operation;
  struct outlet output, error;
  struct inlet input;
  struct process_group group;
  struct process_tree tree;
  struct exec *next, **link; /* in `execs`, until the reply */
  bool exited;               /* the leader has been reaped */
  int status_code, status;   /* siginfo of the leader */
  int cancelled;             /* errno for the reply, or 0 */
  uint64_t cancelled_ms;
};

// Commands that have not been answered.
static struct exec* execs;

// When to look at cancelled groups again, 0: no need to; and after what pause.
static uint64_t look_at_ms;
static uint64_t look_pause_ms;

static void list_exec(struct exec* exec) {
  exec->next = execs;
  exec->link = &execs;
  if (execs) execs->link = &exec->next;
  execs = exec;
}

static void unlist_exec(struct exec* exec) {
  *exec->link = exec->next;
  if (exec->next) exec->next->link = exec->link;
}

// After the reply: whatever still holds the other ends goes on undisturbed, with neither SIGPIPE
// nor a full pipe.
static void discard(struct exec* exec) {
  outlet_discard(&exec->output);
  outlet_discard(&exec->error);
  if (exec->output.fd < 0 && exec->error.fd < 0) operation_finish(&exec->operation);
}

static void reply(struct exec* exec, int error) {
  uint8_t payload[32];
  uint8_t* end = payload;
  if (exec->exited) {
    const uint16_t tag = exec->status_code == CLD_EXITED ? FK_TAG_EXIT_CODE : FK_TAG_SIGNAL;
    end = record_put_u32(end, tag, (uint32_t)exec->status);
  }
  const struct fk_header header = {.payload_bytes = (uint32_t)(end - payload),
                                   .type = FK_REPLY,
                                   .id = exec->operation.id,
                                   .value = (uint32_t)error};
  connection_send(&header, payload);
  unlist_exec(exec);
  operation_unlist(&exec->operation);
  inlet_close(&exec->input);
  process_group_release(&exec->group);
  process_tree_release(&exec->tree);
  discard(exec);
}

static bool has_ended(struct outlet* outlet) {
  const enum progress progress = outlet_pump(outlet);
  if (progress == PROGRESS_AGAIN) operation_schedule(outlet->owner);
  if (progress == PROGRESS_FAILED) {
    outlet->hangup = true;
    outlet->remaining = 0;
    operation_schedule(outlet->owner);
  }
  return progress == PROGRESS_ENDED;
}

static void exec_run(struct operation* operation) {
  struct exec* exec = (struct exec*)operation;
  if (!operation->listed) {
    discard(exec);
    return;
  }
  // A command that does not read its input is not an error: inlet_pump has dropped the rest.
  (void)inlet_pump(&exec->input);
  const bool output_ended = has_ended(&exec->output);
  const bool error_ended = has_ended(&exec->error);
  if (!exec->exited || exec->cancelled || !output_ended || !error_ended) return;
  if (connection_room() < CONNECTION_REPLY_ROOM) {
    operation_schedule(operation);
    return;
  }
  reply(exec, 0);
}

static void exec_input(struct operation* operation, uint64_t offset, const uint8_t* bytes,
                       size_t count, bool end) {
  struct exec* exec = (struct exec*)operation;
  const int error = inlet_input(&exec->input, offset, bytes, count, end);
  if (error == EPROTO || error == ENOMEM) operation->type->cancel(operation, error);
}

static void exec_window(struct operation* operation, uint16_t stream, uint64_t limit) {
  struct exec* exec = (struct exec*)operation;
  if (stream == FK_OUTPUT) outlet_window(&exec->output, limit);
  if (stream == FK_ERROR) outlet_window(&exec->error, limit);
}

static void exec_signal(struct operation* operation, uint32_t number) {
  struct exec* exec = (struct exec*)operation;
  if (number >= 1 && number <= 64) process_group_signal(&exec->group, (int)number);
}

static void exec_resize(struct operation* operation, uint16_t columns, uint16_t rows) {
  struct exec* exec = (struct exec*)operation;
  const struct terminal_size size = {columns, rows};
  if (exec->output.kind != OUTLET_TERMINAL || exec->output.fd < 0) return;
  if (!terminal_size_is_valid(size)) return;
  terminal_resize(exec->output.fd, size);
}

static void exec_cancel(struct operation* operation, int error) {
  struct exec* exec = (struct exec*)operation;
  if (exec->cancelled) return;
  exec->cancelled = error;
  exec->cancelled_ms = loop_now_ms();
  inlet_close(&exec->input);
  process_group_signal(&exec->group, SIGKILL);
  process_tree_signal_kill(&exec->tree);
  look_pause_ms = FIRST_LOOK_MS;
  look_at_ms = exec->cancelled_ms + look_pause_ms;
}

static const struct operation_type exec_type = {
    .run = exec_run,
    .cancel = exec_cancel,
    .input = exec_input,
    .window = exec_window,
    .signal = exec_signal,
    .resize = exec_resize,
};

// True when the reply is out.
static bool finish_cancelled(struct exec* exec, uint64_t now, bool thorough) {
  const bool group_is_dead = exec->exited && process_group_kill(&exec->group, thorough);
  const bool tree_is_dead = process_tree_kill(&exec->tree);
  if (!group_is_dead || !tree_is_dead) {
    if (now - exec->cancelled_ms < KILL_DEADLINE_MS) return false;
    exec->cancelled = ETIMEDOUT;
  }
  // What has arrived is delivered as far as the windows allow; then the streams end.
  outlet_end_with_present(&exec->output);
  outlet_end_with_present(&exec->error);
  enum progress progress;
  do {
    progress = outlet_pump(&exec->output);
    if (progress != PROGRESS_AGAIN) progress = outlet_pump(&exec->error);
    if (progress == PROGRESS_AGAIN && !operations_can_send()) return false;
  } while (progress == PROGRESS_AGAIN);
  if (connection_room() < CONNECTION_REPLY_ROOM) return false;
  if (exec->output.fd >= 0) outlet_end_now(&exec->output);
  if (exec->error.fd >= 0) outlet_end_now(&exec->error);
  reply(exec, exec->cancelled);
  return true;
}

void exec_check_cancelled(void) {
  if (look_at_ms == 0) return;
  const uint64_t now = loop_now_ms();
  const bool due = now >= look_at_ms;
  const bool thorough = due && look_pause_ms == LAST_LOOK_MS;
  bool waiting = false;
  struct exec* next;
  for (struct exec* exec = execs; exec; exec = next) {
    next = exec->next;
    if (exec->cancelled && !finish_cancelled(exec, now, thorough)) waiting = true;
  }
  if (!waiting) {
    look_at_ms = 0;
  } else if (due) {
    look_pause_ms = look_pause_ms * 2 > LAST_LOOK_MS ? LAST_LOOK_MS : look_pause_ms * 2;
    look_at_ms = now + look_pause_ms;
  }
}

int exec_wait_ms(void) {
  if (look_at_ms == 0) return -1;
  const uint64_t now = loop_now_ms();
  return look_at_ms > now ? (int)(look_at_ms - now) : 0;
}

void exec_kill_all(void) {
  for (struct exec* exec = execs; exec; exec = exec->next) {
    process_group_signal(&exec->group, SIGKILL);
    process_tree_signal_kill(&exec->tree);
  }
}

static void leader_exited(struct exec* exec, const siginfo_t* info) {
  exec->exited = true;
  exec->status_code = info->si_code;
  exec->status = info->si_status;
  inlet_close(&exec->input);
  outlet_end_with_present(&exec->output);
  outlet_end_with_present(&exec->error);
  // While the leader is a zombie its pid cannot be reused: hold on to the group now if the
  // operation outlives it.
  if (operations_can_send()) exec_run(&exec->operation);
  if (exec->operation.listed) {
    process_group_hold(&exec->group);
    operation_schedule(&exec->operation);
  }
}

static bool reap_some(void) {
  for (int i = 0; i < REAPED_PER_TURN; i++) {
    siginfo_t info = {0};
    if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0) return false;
    if (!hooks_exited(&info)) {
      struct exec* exec = execs;
      while (exec && (exec->group.leader != info.si_pid || exec->exited)) exec = exec->next;
      if (exec) leader_exited(exec, &info);
    }
    siginfo_t reaped;
    waitid(P_PID, (id_t)info.si_pid, &reaped, WEXITED | WNOHANG);
  }
  return true;
}

bool exec_reap(void) {
  const bool more = reap_some();
  // Behind the reaping: what was the last process of a cgroup has gone now.
  process_tree_sweep();
  return more;
}

// Makes a pipe for the child's descriptor `child_fd`. Returns the agent's end, or -1.
static int make_pipe(struct spawn* request, int child_fd) {
  int ends[2];
  int made;
  do {
    made = pipe2(ends, O_CLOEXEC);
  } while (made < 0 && limits_retry());
  if (made < 0) return -1;
  const int ours = child_fd == STDIN_FILENO ? ends[1] : ends[0];
  request->fds[child_fd] = child_fd == STDIN_FILENO ? ends[0] : ends[1];
  fcntl(ours, F_SETFL, O_NONBLOCK);
  return ours;
}

// Makes what the command finds at 0 to 2. `ours` gets the agent's ends. Returns 0 or an errno.
static int make_streams(const struct exec_options* options, struct spawn* request, int ours[3]) {
  static const uint32_t flags[3] = {FK_EXEC_STDIN, FK_EXEC_STDOUT, FK_EXEC_STDERR};
  request->stage = FK_STAGE_SETUP;
  for (int fd = 0; fd < 3; fd++) {
    if (!(options->flags & flags[fd])) continue;
    ours[fd] = make_pipe(request, fd);
    if (ours[fd] < 0) return errno;
  }
  return 0;
}

static int make_terminal(const struct exec_options* options, struct spawn* request, int ours[3]) {
  request->stage = FK_STAGE_TERMINAL;
  request->terminal = true;
  const struct identity* identity = request->identity;
  const uid_t owner = identity && identity->sets_user ? identity->uid : 0;
  int slave;
  const int error = terminal_open(options->terminal, owner, &ours[1], &slave);
  if (error != 0) return error;
  for (int fd = 0; fd < 3; fd++) request->fds[fd] = slave;
  // A descriptor of its own, since the loop tells of one side of a descriptor only.
  do {
    ours[0] = fcntl(ours[1], F_DUPFD_CLOEXEC, 0);
  } while (ours[0] < 0 && limits_retry());
  return ours[0] < 0 ? errno : 0;
}

static void close_childs(const struct spawn* request) {
  for (int fd = 0; fd < 3; fd++) {
    if (request->fds[fd] >= 0) close(request->fds[fd]);
    if (request->terminal) return;
  }
}

// Connects the agent's ends. Returns 0 or an errno.
static int open_streams(struct exec* exec, const struct exec_options* options, const int ours[3]) {
  const bool terminal = options->terminal.columns > 0;
  inlet_open(&exec->input, &exec->operation, ours[0], FK_INPUT_WINDOW);
  exec->input.terminal = terminal;
  exec->output.limit = options->output_limit;
  exec->error.limit = options->error_limit;
  int error = 0;
  if (ours[1] >= 0) {
    const enum outlet_kind kind = terminal ? OUTLET_TERMINAL : OUTLET_PIPE;
    error = outlet_open(&exec->output, &exec->operation, ours[1], FK_OUTPUT, kind);
  }
  if (ours[2] >= 0) {
    const int more = outlet_open(&exec->error, &exec->operation, ours[2], FK_ERROR, OUTLET_PIPE);
    if (more != 0) error = more;
  }
  // Nobody will write: the end that a pipe has by itself has to be typed.
  if (terminal && !(options->flags & FK_EXEC_STDIN)) inlet_input(&exec->input, 0, NULL, 0, true);
  return error;
}

static int start(struct exec* exec, const struct exec_options* options, struct spawn* request) {
  int ours[3] = {-1, -1, -1};
  pid_t pid = -1;
  request->error = options->terminal.columns > 0 ? make_terminal(options, request, ours)
                                                 : make_streams(options, request, ours);
  if (request->error == 0 && options->flags & FK_EXEC_KILL_TREE) {
    request->stage = FK_STAGE_TREE;
    request->error = process_tree_create(&exec->tree, &request->enter);
  }
  if (request->error == 0) pid = spawn(request);
  close_childs(request);
  if (request->enter >= 0) close(request->enter);
  if (pid < 0) {
    for (int fd = 0; fd < 3; fd++) {
      if (ours[fd] >= 0) close(ours[fd]);
    }
    process_tree_release(&exec->tree);
    return request->error;
  }
  exec->group.leader = pid;
  const int error = open_streams(exec, options, ours);
  // Without an entry in the loop its output would not be seen: the command must not go on.
  if (error != 0) exec_cancel(&exec->operation, error);
  return 0;
}

static void reply_failed(uint32_t id, int error, int stage) {
  uint8_t payload[16];
  const uint8_t* end = record_put_u32(payload, FK_TAG_STAGE, (uint32_t)stage);
  const struct fk_header header = {.payload_bytes = (uint32_t)(end - payload),
                                   .type = FK_REPLY,
                                   .id = id,
                                   .value = (uint32_t)error};
  connection_send(&header, payload);
}

// Starts the command of the options. Returns 0, or an errno with the stage in the request.
static int start_as(struct exec* exec, struct exec_options* options, struct spawn* request) {
  // For one command at a time.
  static struct identity identity;
  if (exec_options_have_identity(options)) {
    const int error = identity_resolve(&identity, options, &request->stage);
    if (error != 0) return error;
    exec_options_add_login(options, &identity);
    request->identity = &identity;
  }
  return start(exec, options, request);
}

void exec_request(uint32_t id, uint8_t* payload, size_t bytes) {
  struct exec_options options;
  int error = exec_options_parse(&options, payload, bytes);
  struct exec* exec = error == 0 ? operation_new(&exec_type, id, sizeof(*exec)) : NULL;
  if (error == EPROTO) {
    connection_reply(id, EPROTO);
  } else if (!exec) {
    reply_failed(id, ENOMEM, FK_STAGE_SETUP);
  } else {
    exec->output.fd = exec->error.fd = exec->input.fd = exec->group.held = -1;
    exec->output.owner = exec->error.owner = &exec->operation;
    struct spawn request = {.argv = options.argv,
                            .envp = options.envp,
                            .cwd = options.cwd,
                            .path = options.path,
                            .fds = {-1, -1, -1},
                            .umask = options.umask,
                            .enter = -1,
                            .limits = options.limits,
                            .limit_count = options.limit_count,
                            .stage = FK_STAGE_SETUP};
    error = start_as(exec, &options, &request);
    if (error != 0) {
      operation_finish(&exec->operation);
      reply_failed(id, error, request.stage);
    } else {
      list_exec(exec);
      connection_started(id, exec->group.leader, (options.flags & FK_EXEC_LAZY_START) != 0);
    }
  }
  exec_options_free(&options);
}
