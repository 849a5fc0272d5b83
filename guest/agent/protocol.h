/*
 * The protocol between the host library and the guest agent.
 *
 * One connection carries everything: the control connection, which the agent
 * dials once at boot (vsock, host CID 2, port FK_CONTROL_PORT). Both sides
 * send frames: a fixed header, then `payload_bytes` bytes. All integers are
 * little endian. docs/guest-protocol.md explains the exchanges; this header is
 * the source of truth for numbers, and lib/internal/protocol/protocol.ts mirrors it (a
 * test compares the two).
 *
 * An *operation* is one request of the host, named by a 32-bit id of the
 * host's choice that is unique among its live operations. An operation can own
 * up to three byte streams. Each stream has an absolute 64-bit offset, and a
 * sender never sends past the limit that the receiver has granted (FK_WINDOW),
 * so a reader that stops stalls its own stream and nothing else.
 */
#pragma once

#include <stdint.h>

#define FK_PROTOCOL_VERSION 1u

/* The vsock port on the host (CID 2) that the agent dials. */
#define FK_CONTROL_PORT 1u

/* Largest payload of one frame, in bytes. Larger is a protocol error. */
#define FK_MAX_PAYLOAD 65536u

/* Largest payload of FK_EXEC, in bytes: what the kernel takes for arguments
   and environment together under its default stack limit. */
#define FK_MAX_EXEC_PAYLOAD 2097152u

/* Initial limit of a command's stdin, in bytes: what the host may send right
   behind the request, before any FK_WINDOW. */
#define FK_INPUT_WINDOW 65536u

/* The same for the contents of FK_FILE_WRITE. Larger, because a file takes
   its bytes at once and none of them wait in the agent's memory. */
#define FK_FILE_WINDOW 524288u

/* Longest path that a reply has, in bytes: Linux's PATH_MAX without the NUL. */
#define FK_MAX_PATH 4095u

/* Longest name of an entry of a tree, in bytes. */
#define FK_MAX_NAME 255u

/* Most operations that the agent keeps at once; more are refused with EAGAIN. */
#define FK_MAX_OPERATIONS 4096u

/* Pauses between two looks for a port that nobody listens at: the first, from
   where they double, and the longest unless the request says another. */
#define FK_FIRST_LOOK_MS 10u
#define FK_LONGEST_LOOK_MS 250u

/* Most supplementary groups of a command. */
#define FK_MAX_GROUPS 1024u

/* What each hook may take before it is killed, in milliseconds. */
#define FK_HOOK_TIMEOUT_MS 10000u

struct fk_header {
  uint32_t payload_bytes;
  uint16_t type;   /* enum fk_type */
  uint16_t stream; /* enum fk_stream; 0 where the type has none */
  uint32_t id;     /* operation; 0 where the type has none */
  uint32_t value;  /* per type, see below; otherwise 0 */
  uint64_t offset; /* FK_DATA, FK_END: stream offset of the payload's first
                      byte. FK_WINDOW: the new absolute limit. FK_RENEWED: the
                      generation. Otherwise 0 */
};
_Static_assert(sizeof(struct fk_header) == 24, "wire format");

enum fk_stream {
  FK_INPUT = 0,  /* host to guest: stdin, file contents to be written */
  FK_OUTPUT = 1, /* guest to host: stdout, file contents, directory entries */
  FK_ERROR = 2,  /* guest to host: stderr */
};

enum fk_type {
  /* Host to guest. Requests with an id end in exactly one FK_REPLY. */
  FK_CONFIGURE = 1, /* records: HOSTNAME?; once, before other requests */
  FK_PING = 2,      /* answered by FK_REPLY at once */
  FK_EXEC = 3,      /* records: ARG+, ENV*, CWD?, OUTPUT_LIMIT?, ERROR_LIMIT?, FLAGS?, USER_*?,
                       GROUP_*?, MEMBER_**, UMASK?, LIMIT*, TERMINAL? */
  FK_SIGNAL = 4,    /* value = signal number; to the process group of exec `id`.
                       No reply; nothing happens when the group is gone */
  FK_CANCEL = 5,    /* ends operation `id`: an exec's process group is killed with
                       SIGKILL, its streams end, and FK_REPLY (ECANCELED) follows
                       after the group is dead; a file operation stops with
                       ECANCELED. value = enum fk_cancel. No reply of its own */
  FK_FILE = 6,      /* value = enum fk_file_op; records per op */
  FK_PARK = 7,      /* value = enum fk_park. Behind FK_REPLY everything that the agent
                       has to say leaves first, and no later frame is looked at before
                       it has parked and come back */
  FK_RESIZE = 9,    /* the terminal of exec `id` has another size: value = columns | rows << 16.
                       No reply; nothing happens without a terminal */
  FK_RENEW = 8,     /* look at the mailbox: make this machine unique if its generation
                       is new. No id and no reply: FK_RENEWED answers */

  /* Records: PORT, OUTPUT_LIMIT?. A TCP connection to this port of the guest's loopback.
     FK_CONNECTED follows, then FK_INPUT and FK_OUTPUT are its two directions, and FK_REPLY
     when both have ended. */
  FK_CONNECT = 10,
  /* Records: PORT, INTERVAL?. FK_REPLY when something listens there. */
  FK_WAIT_PORT = 11,

  /* Both ways. */
  FK_DATA = 16,   /* stream bytes, at least one */
  FK_END = 17,    /* end of stream at `offset`; no payload */
  FK_WINDOW = 18, /* the receiver of `stream` grants bytes up to `offset` */

  /* Guest to host. */
  FK_HELLO = 32,   /* first frame: value = FK_PROTOCOL_VERSION; records: KERNEL, AGENT */
  FK_STARTED = 33, /* exec `id` runs; value = pid */
  FK_REPLY = 34,   /* the operation is over; value = 0 or a Linux errno;
                      records: STAGE? EXIT_CODE? SIGNAL? STAT? ... per request */
  FK_FATAL = 35,   /* the host broke the protocol; payload = UTF-8 reason;
                      the agent closes the connection after it */
  FK_RENEWED = 36, /* this machine is unique: offset = its generation; value = 0, or
                      the errno of the first step that failed; records: STAGE? HOOK?
                      EXIT_CODE? SIGNAL?. Unasked after a park that ended in another
                      machine */

  /* FK_CONNECT `id` has its connection; no records. */
  FK_CONNECTED = 37,
};

/*
 * Records: most payloads are a sequence of {uint16 tag, uint16 zero, uint32
 * length, bytes}, unpadded. Integers in records are little endian and of the
 * stated size. An unknown tag is an error (EPROTO): both sides are released
 * together.
 */
struct fk_record {
  uint16_t tag; /* enum fk_tag */
  uint16_t zero;
  uint32_t length; /* bytes that follow */
};
_Static_assert(sizeof(struct fk_record) == 8, "wire format");

enum fk_tag {
  FK_TAG_HOSTNAME = 1,
  FK_TAG_KERNEL = 2,       /* utsname release */
  FK_TAG_AGENT = 3,        /* agent version text */
  FK_TAG_ARG = 4,          /* one argument, no NUL inside */
  FK_TAG_ENV = 5,          /* NAME=value, no NUL inside */
  FK_TAG_CWD = 6,          /* default "/" */
  FK_TAG_OUTPUT_LIMIT = 7, /* u64: initial limit of stdout / contents; default 0 */
  FK_TAG_ERROR_LIMIT = 8,  /* u64: initial limit of stderr; default 0 */
  FK_TAG_FLAGS = 9,        /* u32: enum fk_exec_flag or enum fk_file_flag */
  FK_TAG_PATH = 10,        /* absolute or relative to "/", no NUL inside; in FK_REPLY what a
                              link or a path leads to, or where in a tree UNPACK or PACK
                              failed, 1 to FK_MAX_PATH bytes */
  FK_TAG_MODE = 11,        /* u32: permission bits; for creation, umask 022 applies */
  FK_TAG_STAGE = 12,       /* u32: enum fk_exec_stage or enum fk_renew_stage: what failed */
  FK_TAG_EXIT_CODE = 13,   /* u32 */
  FK_TAG_SIGNAL = 14,      /* u32: the signal that ended the process */
  FK_TAG_STAT = 15,        /* struct fk_stat */
  FK_TAG_RANGE = 16,       /* two u64: first offset, byte count (UINT64_MAX: to the end) */
  FK_TAG_HOOK = 17,        /* file name of the hook that failed */
  FK_TAG_DESTINATION = 18, /* the second path of a request that has two */
  FK_TAG_OWNER = 19,       /* two u32: user and group; UINT32_MAX leaves one as it is */
  FK_TAG_TIMES = 20,       /* two i64: access and modification, ns since 1970 */
  FK_TAG_SIZE = 21,        /* u64: bytes */
  FK_TAG_USER_NAME = 40,   /* who runs a command, of the guest's /etc/passwd */
  FK_TAG_USER_ID = 41,     /* u32: the same as a number, which need not be there */
  FK_TAG_GROUP_NAME = 42,  /* its group instead of the user's, of /etc/group */
  FK_TAG_GROUP_ID = 43,    /* u32: the same as a number */
  FK_TAG_MEMBER_NAME = 44, /* a supplementary group; see FK_EXEC_GROUPS */
  FK_TAG_MEMBER_ID = 45,   /* u32: the same as a number */
  FK_TAG_UMASK = 46,       /* u32: permission bits that new files lack */
  FK_TAG_LIMIT = 47,       /* struct fk_limit */
  FK_TAG_TERMINAL = 48,    /* two u32: columns and rows, 1 to 65,535 each. Stdin, stdout and stderr
                              are one terminal, whose output is FK_OUTPUT: with FK_EXEC_STDOUT and
                              without FK_EXEC_STDERR */
  FK_TAG_PORT = 50,        /* u32: 1 to 65535 */
  FK_TAG_INTERVAL = 51,    /* u32: longest pause between two looks, in ms, at least 1 */
};

enum fk_cancel {
  FK_CANCEL_CLOSE = 0, /* a connection is closed as by close(2) */
  FK_CANCEL_RESET = 1, /* FK_CONNECT: its peer gets a reset, and FK_REPLY is ECONNRESET */
};

enum fk_exec_flag {
  FK_EXEC_STDIN = 1u << 0,  /* stdin is stream FK_INPUT; otherwise /dev/null, and of a terminal the
                               end of input is typed at once */
  FK_EXEC_STDOUT = 1u << 1, /* stdout is stream FK_OUTPUT; otherwise /dev/null */
  FK_EXEC_STDERR = 1u << 2, /* stderr is stream FK_ERROR; otherwise /dev/null */

  /* FK_STARTED need not be prompt: it waits for the next frame that the agent
     sends, which saves a packet for a short command. A host that has set it
     and wants FK_STARTED after all sends FK_PING. */
  FK_EXEC_LAZY_START = 1u << 3,

  FK_EXEC_GROUPS = 1u << 4, /* the supplementary groups are those of the records and no others;
                               otherwise those of a user that is given, or the agent's */

  /* With a user: the variable comes from /etc/passwd, besides those of the records. */
  FK_EXEC_HOME = 1u << 5,
  FK_EXEC_USER = 1u << 6,
  FK_EXEC_LOGNAME = 1u << 7,

  /* In a cgroup of its own: FK_CANCEL kills whatever it has started. */
  FK_EXEC_KILL_TREE = 1u << 8,
};

/* Where starting a command failed; FK_REPLY.value is the errno of it. */
enum fk_exec_stage {
  FK_STAGE_SETUP = 1,   /* pipes, fork */
  FK_STAGE_CWD = 2,     /* chdir */
  FK_STAGE_EXECUTE = 3, /* execve: not found, not executable */
  FK_STAGE_USER = 4,    /* no such user (ENOENT), /etc/passwd, setresuid */
  FK_STAGE_GROUP = 5,   /* no such group (ENOENT), /etc/group, setresgid */
  FK_STAGE_GROUPS = 6,  /* the same of the supplementary groups, setgroups */
  FK_STAGE_LIMITS = 7,  /* setrlimit */
  FK_STAGE_TREE = 8,    /* cgroup; EOPNOTSUPP: no cgroup2 with cgroup.kill */
  FK_STAGE_TERMINAL = 9,
};

enum fk_file_op {
  FK_FILE_READ = 1,  /* PATH, RANGE?, OUTPUT_LIMIT?: contents on FK_OUTPUT, then FK_END, FK_REPLY */
  FK_FILE_WRITE = 2, /* PATH, MODE?, RANGE? (only its first offset), FLAGS?: contents on FK_INPUT
                        up to FK_END, then FK_REPLY */
  FK_FILE_STAT = 3,  /* PATH, FLAGS?: FK_REPLY with STAT */
  FK_FILE_READDIR = 4,   /* PATH, OUTPUT_LIMIT?, FLAGS? (RECURSIVE): struct fk_dirent + name,
                            packed, on FK_OUTPUT */
  FK_FILE_MKDIR = 5,     /* PATH, MODE?, FLAGS? (RECURSIVE) */
  FK_FILE_REMOVE = 6,    /* PATH, FLAGS? (RECURSIVE, FORCE): node's fs.rm */
  FK_FILE_RENAME = 7,    /* PATH, DESTINATION */
  FK_FILE_LINK = 8,      /* PATH, DESTINATION: a hard link at the latter */
  FK_FILE_SYMLINK = 9,   /* PATH, DESTINATION: a link at the latter that says the former */
  FK_FILE_READLINK = 10, /* PATH: FK_REPLY with PATH */
  FK_FILE_REALPATH = 11, /* PATH: FK_REPLY with PATH */
  FK_FILE_ACCESS = 12,   /* PATH, MODE: of access(2) */
  FK_FILE_CHMOD = 13,    /* PATH, MODE */
  FK_FILE_CHOWN = 14,    /* PATH, OWNER, FLAGS? (NOFOLLOW) */
  FK_FILE_UTIMES = 15,   /* PATH, TIMES, FLAGS? (NOFOLLOW) */
  FK_FILE_TRUNCATE = 16, /* PATH, SIZE */
  FK_FILE_COPY = 17,     /* PATH, DESTINATION, FLAGS? (EXCLUSIVE) */
  FK_FILE_WATCH = 18,    /* PATH, OUTPUT_LIMIT?, FLAGS? (RECURSIVE): struct fk_dirent with enum
                            fk_watch_event + path, packed, on FK_OUTPUT */
  FK_FILE_UNPACK = 19,   /* PATH: makes the tree on FK_INPUT, see struct fk_tree_entry, at PATH;
                            FK_REPLY after its FK_END */
  FK_FILE_PACK = 20,     /* PATH, OUTPUT_LIMIT?: the tree at PATH on FK_OUTPUT, then FK_END,
                            FK_REPLY */
};

enum fk_file_flag {
  FK_FILE_NOFOLLOW = 1u << 0,  /* STAT, CHOWN, UTIMES: of a symbolic link itself */
  FK_FILE_RECURSIVE = 1u << 1, /* MKDIR, REMOVE, READDIR, WATCH */
  FK_FILE_FORCE = 1u << 2,     /* REMOVE: a missing path is not an error */
  FK_FILE_APPEND = 1u << 3,    /* WRITE: append instead of truncate */
  FK_FILE_EXCLUSIVE = 1u << 4, /* WRITE, COPY: fail with EEXIST when it exists */
  FK_FILE_UPDATE = 1u << 5,    /* WRITE: into the file that is there, without truncating it */
  FK_FILE_ATOMIC = 1u << 6,    /* WRITE: into a temporary file that takes the place at the end */
};

/* What FK_FILE_WATCH tells of. The path is below the one that is watched; empty
   is that one itself. */
enum fk_watch_event {
  FK_WATCH_RENAME = 1,   /* an entry has come or gone */
  FK_WATCH_CHANGE = 2,   /* contents or attributes have changed */
  FK_WATCH_OVERFLOW = 3, /* events have been lost; no path */
  FK_WATCH_READY = 4,    /* everything that was there is watched now; once, no path */
};

enum fk_park {
  FK_PARK_STAND = 0, /* stand still at the doorbell's PARK_AGENT */
  FK_PARK_FLUSH = 1, /* only send everything: a program parks instead */
};

/* The steps that make a machine unique, in their order. */
enum fk_renew_stage {
  FK_RENEW_ENTROPY = 1,    /* the kernel's random pool. Without it no other step is
                              made: the machine must not go on */
  FK_RENEW_CLOCK = 2,      /* CLOCK_REALTIME */
  FK_RENEW_HOSTNAME = 3,   /* where the host gave a name */
  FK_RENEW_MACHINE_ID = 4, /* /etc/machine-id, where there is one */
  FK_RENEW_GENERATION = 5, /* /run/forklet/generation */
  FK_RENEW_HOOK = 6,       /* a program of /etc/forklet/fork.d: could not be started
                              (its errno), took longer than FK_HOOK_TIMEOUT_MS
                              (ETIMEDOUT), or failed (EIO; EXIT_CODE or SIGNAL) */
};

/* What setrlimit(2) takes. */
struct fk_limit {
  uint32_t resource; /* RLIMIT_* of Linux on x86-64 */
  uint32_t zero;
  uint64_t soft, hard; /* UINT64_MAX: unlimited */
};
_Static_assert(sizeof(struct fk_limit) == 24, "wire format");

/* The fields of struct stat, fixed in size. Times in nanoseconds since 1970. */
struct fk_stat {
  uint64_t dev, ino, nlink, rdev, size, blocks;
  int64_t atime_ns, mtime_ns, ctime_ns, birthtime_ns;
  uint32_t mode, uid, gid, blksize;
};
_Static_assert(sizeof(struct fk_stat) == 96, "wire format");

/* One directory entry; `name_bytes` bytes of name follow, or with RECURSIVE of
   the path below the directory, at most FK_MAX_PATH. `type` is DT_*. */
struct fk_dirent {
  uint16_t name_bytes;
  uint8_t type;
  uint8_t zero;
};
_Static_assert(sizeof(struct fk_dirent) == 4, "wire format");

/*
 * A tree, as FK_FILE_UNPACK takes and FK_FILE_PACK sends it: entries without
 * gaps, and without regard to frames. The first is a DIRECTORY or a FILE without
 * a name: what stands at PATH itself. An entry behind a DIRECTORY is inside of
 * it, until its LEAVE. END is the last.
 */
enum fk_tree_type {
  FK_TREE_DIRECTORY = 1,
  FK_TREE_FILE = 2,    /* runs of its contents follow */
  FK_TREE_SYMLINK = 3, /* what it says follows, `size` bytes: 1 to FK_MAX_PATH, no NUL */
  FK_TREE_LINK = 4,    /* another name of a FILE with FK_TREE_LINKED: `size` says which,
                          counted from 0. No mode and no times */
  FK_TREE_LEAVE = 5,   /* the directory is complete. Nothing but the type */
  FK_TREE_END = 6,     /* the tree is complete: `size` is the number of devices, FIFOs
                          and sockets that it has no entry for */
};

enum fk_tree_flag {
  FK_TREE_LINKED = 1u << 0, /* FILE: may have further names */
};

/* `name_bytes` bytes of name follow: one to FK_MAX_NAME of them, without slash
   and NUL, neither "." nor "..". The names down to an entry and the slashes
   between them have at most FK_MAX_PATH bytes. */
struct fk_tree_entry {
  uint8_t type;  /* enum fk_tree_type */
  uint8_t flags; /* enum fk_tree_flag */
  uint16_t name_bytes;
  uint32_t mode;                    /* permission bits, at most 01777; of a SYMLINK 0 */
  uint64_t size;                    /* of a FILE at most INT64_MAX */
  int64_t accessed_ns, modified_ns; /* since 1970 */
};
_Static_assert(sizeof(struct fk_tree_entry) == 32, "wire format");

/* Contents of a FILE, unless its size is 0: runs in ascending order, zeros between
   them. The last one reaches the size, or has no bytes: its offset is the size
   then, of a file that was cut off while it was read, or that ends in zeros. */
struct fk_tree_run {
  uint64_t offset;
  uint32_t bytes; /* that follow */
  uint32_t zero;
};
_Static_assert(sizeof(struct fk_tree_run) == 16, "wire format");
