import { getSystemErrorMap } from 'node:util';

import type { NativeError } from './native.js';

/**
 * Every code that a {@link VmError} can carry. Branch on these; messages may change.
 *
 * `docs/troubleshooting.md` has one section for each.
 */
export const VM_ERROR_CODES = [
  /** The guest agent broke the protocol; the VM runs on, but can no longer be talked to. */
  'ERR_VM_AGENT_PROTOCOL',
  /** The guest agent did not answer within its deadline. */
  'ERR_VM_AGENT_UNRESPONSIVE',
  /** The kernel file is missing or cannot be booted, or its modules are not there. */
  'ERR_VM_BAD_KERNEL',
  /** The root is missing, or is neither a directory nor a cpio archive. */
  'ERR_VM_BAD_ROOT',
  /** The snapshot's directory is missing, damaged, of another version, or writable by others. */
  'ERR_VM_BAD_SNAPSHOT',
  /** The guest agent did not answer within `bootTimeoutMs`. */
  'ERR_VM_BOOT_TIMEOUT',
  /** The VM, or the snapshot, was closed by its owner. */
  'ERR_VM_CLOSED',
  /** The command could not be started; `errno` is the guest's. */
  'ERR_VM_EXEC',
  /** There is a snapshot in that directory already, and `overwrite` was not set. */
  'ERR_VM_EXISTS',
  /** The VM stopped running: see `detail`. */
  'ERR_VM_EXITED',
  /** The command failed, and `check: true` makes that an error. */
  'ERR_VM_EXIT_STATUS',
  /** A state that should be impossible: a bug of this library. */
  'ERR_VM_INTERNAL',
  /** The file behind the VM's memory failed or was truncated; the VM is gone. */
  'ERR_VM_IO',
  /** A KVM request failed: see `syscall` and `errno`. */
  'ERR_VM_KVM',
  /** This host cannot run VMs: no KVM, no permission, another platform, or no built addon. */
  'ERR_VM_KVM_UNAVAILABLE',
  /** More forks than the limits of this host or process allow: the message names the limit. */
  'ERR_VM_LIMIT',
  /** More output than `maxOutputBytes` allows. */
  'ERR_VM_MAX_OUTPUT',
  /** A download has more bytes or entries than `maxBytes` or `maxEntries` allow. */
  'ERR_VM_MAX_TRANSFER',
  /** A fork could not confirm that its randomness and identity are its own; it was stopped. */
  'ERR_VM_NOT_UNIQUE',
  /** The host refused memory, or the guest's memory is too small for its kernel and root. */
  'ERR_VM_NO_MEMORY',
  /** The VM does not come from a snapshot, so there is none to reset it to. */
  'ERR_VM_NO_SNAPSHOT',
  /** The guest did not stand still for a snapshot in time; the VM goes on. */
  'ERR_VM_PARK_TIMEOUT',
  /** The VM is paused. */
  'ERR_VM_PAUSED',
  /** A program that stands parked said that the call failed, ended, or answered too much. */
  'ERR_VM_PROGRAM',
  /** The VM was reset to a snapshot while the operation was pending. */
  'ERR_VM_RESET',
  /** A system call of the host failed: see `syscall` and `errno`. */
  'ERR_VM_SYSTEM',
  /** A command, a call, a transfer or a fork took longer than its `timeoutMs`. */
  'ERR_VM_TIMEOUT',
] as const;

/** One of {@link VM_ERROR_CODES}. */
export type VmErrorCode = (typeof VM_ERROR_CODES)[number];

/** What a {@link VmError} is made of. */
export interface VmErrorInit {
  readonly code: VmErrorCode;
  readonly message: string;
  readonly detail?: string;
  /** Negative, as Node's are */
  readonly errno?: number;
  readonly syscall?: string;
  readonly cause?: unknown;
}

/** A failure of a VM or of the host under it. Errors of guest files are Node's own kind instead. */
export class VmError extends Error {
  /** What went wrong, to branch on. */
  readonly code: VmErrorCode;
  /**
   * For a VM that died, the end of its serial console with control characters escaped; otherwise
   * absent.
   */
  declare readonly detail?: string;
  /** Negative errno, where a system call is behind the failure. */
  declare readonly errno?: number;
  /** The system call or KVM request that failed. */
  declare readonly syscall?: string;

  constructor(init: VmErrorInit) {
    super(init.message, init.cause === undefined ? undefined : { cause: init.cause });
    this.code = init.code;
    if (init.detail !== undefined) this.detail = init.detail;
    if (init.errno !== undefined) this.errno = init.errno;
    if (init.syscall !== undefined) this.syscall = init.syscall;
  }
}
// On the prototype and not enumerable, as the names of Node's own error classes are.
Object.defineProperty(VmError.prototype, 'name', {
  value: 'VmError',
  configurable: true,
  writable: true,
});

/** What an {@link ExecError} knows about the command besides the error itself. */
export interface ExecErrorInit extends VmErrorInit {
  readonly command: string | readonly string[];
  readonly stdout: string | Buffer;
  readonly stderr: string | Buffer;
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly durationMs: number;
}

/** A {@link VmError} of `vm.exec()`, with everything that the command had written by then. */
export class ExecError extends VmError {
  /** The command as it was given. */
  readonly command: string | readonly string[];
  /** Collected standard output so far, in the encoding asked for; empty where a caller took it. */
  readonly stdout: string | Buffer;
  /** Collected standard error so far, likewise. */
  readonly stderr: string | Buffer;
  /** Exit code, or `null` when the command did not run to its end. */
  readonly exitCode: number | null;
  /** The signal that ended the command, or `null`. */
  readonly signal: NodeJS.Signals | null;
  /** Time from the call to the failure, in milliseconds. */
  readonly durationMs: number;

  constructor(init: ExecErrorInit) {
    super(init);
    this.command = init.command;
    this.stdout = init.stdout;
    this.stderr = init.stderr;
    this.exitCode = init.exitCode;
    this.signal = init.signal;
    this.durationMs = init.durationMs;
  }
}
Object.defineProperty(ExecError.prototype, 'name', {
  value: 'ExecError',
  configurable: true,
  writable: true,
});

const codes: ReadonlySet<string> = new Set(VM_ERROR_CODES);

/** Turns the core's record into an error whose stack points at the caller. */
export function fromNative(error: NativeError, detail?: string): VmError {
  const known = codes.has(error.code);
  return new VmError({
    code: known ? (error.code as VmErrorCode) : 'ERR_VM_INTERNAL',
    message: known ? error.message : `${error.code}: ${error.message}`,
    ...(error.errno !== 0 && { errno: -error.errno }),
    ...(error.syscall !== '' && { syscall: error.syscall }),
    ...(detail !== undefined && { detail }),
  });
}

/** Linux's largest errno: EHWPOISON. */
const LAST_ERRNO = 133;

/** Name and description of a Linux errno, for numbers that a guest made up as well. */
export function describeErrno(errno: number): { code: string; text: string } {
  // Beyond Linux's own numbers libuv has some for itself.
  const known = errno <= LAST_ERRNO ? getSystemErrorMap().get(-errno) : undefined;
  return known === undefined
    ? { code: `UNKNOWN_${errno}`, text: `unknown error ${errno}` }
    : { code: known[0], text: known[1] };
}

/** The error that node:fs would have raised, for a file of the guest. */
export function guestFileError(
  errno: number,
  syscall: string,
  path: string,
  dest?: string,
): NodeJS.ErrnoException & { dest?: string } {
  const { code, text } = describeErrno(errno);
  const paths = dest === undefined ? `'${path}'` : `'${path}' -> '${dest}'`;
  const error: NodeJS.ErrnoException & { dest?: string } = new Error(
    `${code}: ${text}, ${syscall} ${paths}`,
  );
  error.errno = -errno;
  error.code = code;
  error.syscall = syscall;
  error.path = path;
  if (dest !== undefined) error.dest = dest;
  return error;
}

/** The address that errors of {@link portError} name. */
const GUEST_ADDRESS = '127.0.0.1';

/** The error that node:net would have raised, for a port of the guest. */
export function portError(
  errno: number,
  syscall: string,
  port: number,
): NodeJS.ErrnoException & { address: string; port: number } {
  const { code } = describeErrno(errno);
  const error = new Error(`${syscall} ${code} ${GUEST_ADDRESS}:${port}`);
  return Object.assign(error, { errno: -errno, code, syscall, address: GUEST_ADDRESS, port });
}

/** The same for a connection that was there. */
export function connectionError(errno: number): NodeJS.ErrnoException {
  const { code } = describeErrno(errno);
  const syscall = code === 'EPIPE' ? 'write' : 'read';
  return Object.assign(new Error(`${syscall} ${code}`), { errno: -errno, code, syscall });
}

/** Node's AbortError, which Node does not export. */
export class AbortError extends Error {
  readonly code = 'ABORT_ERR';

  constructor(cause: unknown) {
    super('The operation was aborted', { cause });
  }
}
Object.defineProperty(AbortError.prototype, 'name', {
  value: 'AbortError',
  configurable: true,
  writable: true,
});

/** Whether the value is an object with a string `code`, as every error of ours and Node's has. */
export function errorCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}
