/** The numbers of guest/agent/protocol.h, which is their source; a test compares the two. */

export const PROTOCOL_VERSION = 1;
/** vsock port on the host that the agent dials. */
export const CONTROL_PORT = 1;
/** Bytes of a frame's header. */
export const HEADER_BYTES = 24;
/** Largest payload of one frame, in bytes. */
export const MAX_PAYLOAD_BYTES = 65536;
/** Largest payload of an exec request, in bytes. */
export const MAX_EXEC_PAYLOAD_BYTES = 2097152;
/** Initial limit of a command's stdin, in bytes. */
export const INPUT_WINDOW_BYTES = 65536;
/** Initial limit of the contents of a file to be written, in bytes. */
export const FILE_WINDOW_BYTES = 524288;
/** Longest path that a reply has, in bytes. */
export const MAX_PATH_BYTES = 4095;
/** Longest name of an entry of a tree, in bytes. */
export const MAX_NAME_BYTES = 255;
/** Most operations that the agent keeps at once. */
export const MAX_OPERATIONS = 4096;
/** Longest pause between two looks for a port, unless the request says another, in milliseconds. */
export const LONGEST_LOOK_MS = 250;
/** Most supplementary groups of a command. */
export const MAX_GROUPS = 1024;
/** What each hook of a renewal may take, in milliseconds. */
export const HOOK_TIMEOUT_MS = 10000;

export const Stream = { input: 0, output: 1, error: 2 } as const;
export type OutputStream = typeof Stream.output | typeof Stream.error;

export const FrameType = {
  configure: 1,
  ping: 2,
  exec: 3,
  signal: 4,
  cancel: 5,
  file: 6,
  park: 7,
  renew: 8,
  resize: 9,
  connect: 10,
  waitPort: 11,
  data: 16,
  end: 17,
  window: 18,
  hello: 32,
  started: 33,
  reply: 34,
  fatal: 35,
  renewed: 36,
  connected: 37,
} as const;

export const Tag = {
  hostname: 1,
  kernel: 2,
  agent: 3,
  arg: 4,
  env: 5,
  cwd: 6,
  outputLimit: 7,
  errorLimit: 8,
  flags: 9,
  path: 10,
  mode: 11,
  stage: 12,
  exitCode: 13,
  signal: 14,
  stat: 15,
  range: 16,
  hook: 17,
  destination: 18,
  owner: 19,
  times: 20,
  size: 21,
  userName: 40,
  userId: 41,
  groupName: 42,
  groupId: 43,
  memberName: 44,
  memberId: 45,
  umask: 46,
  limit: 47,
  terminal: 48,
  port: 50,
  interval: 51,
} as const;

export const Cancel = { close: 0, reset: 1 } as const;
export type CancelMode = (typeof Cancel)[keyof typeof Cancel];

export const ExecFlag = {
  stdin: 1,
  stdout: 2,
  stderr: 4,
  lazyStart: 8,
  groups: 16,
  home: 32,
  user: 64,
  logname: 128,
  killTree: 256,
} as const;
export const ExecStage = {
  setup: 1,
  cwd: 2,
  execute: 3,
  user: 4,
  group: 5,
  groups: 6,
  limits: 7,
  tree: 8,
  terminal: 9,
} as const;
export const FileOp = {
  read: 1,
  write: 2,
  stat: 3,
  readdir: 4,
  mkdir: 5,
  remove: 6,
  rename: 7,
  link: 8,
  symlink: 9,
  readlink: 10,
  realpath: 11,
  access: 12,
  chmod: 13,
  chown: 14,
  utimes: 15,
  truncate: 16,
  copy: 17,
  watch: 18,
  unpack: 19,
  pack: 20,
} as const;
export const FileFlag = {
  nofollow: 1,
  recursive: 2,
  force: 4,
  append: 8,
  exclusive: 16,
  update: 32,
  atomic: 64,
} as const;
export const WatchEvent = { rename: 1, change: 2, overflow: 3, ready: 4 } as const;
export const TreeType = {
  directory: 1,
  file: 2,
  symlink: 3,
  link: 4,
  leave: 5,
  end: 6,
} as const;
export const TreeFlag = { linked: 1 } as const;
export const ParkMode = { stand: 0, flush: 1 } as const;
export const RenewStage = {
  entropy: 1,
  clock: 2,
  hostname: 3,
  machineId: 4,
  generation: 5,
  hook: 6,
} as const;

/** Bytes of a record before its contents. */
export const RECORD_HEADER_BYTES = 8;
