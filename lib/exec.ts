import type { Readable, Writable } from 'node:stream';
import type { Environment } from './internal/base/validate.js';
import { readLines } from './internal/exec/lines.js';
import type { ExecRun } from './internal/exec/run.js';
import { signalNumber } from './internal/exec/signals.js';

/** A command line for the guest's `/bin/sh -c`, or a program with its arguments. */
export type ExecCommand = string | readonly string[];

/** A resource of {@link ExecOptions.limits}. */
export type LimitName =
  | 'nofile'
  | 'nproc'
  | 'cpu'
  | 'fsize'
  | 'core'
  | 'as'
  | 'stack'
  | 'data'
  | 'memlock';

/** A limit of one resource: a whole number from 0 to 2^53 - 1, or none. */
export type LimitValue = number | 'unlimited';

/** Size of a terminal, in characters: 1 to 65 535 each. */
export interface TerminalSize {
  readonly columns: number;
  readonly rows: number;
}

/** Options of `vm.exec()`. */
export interface ExecOptions {
  /** Working directory in the guest. @defaultValue `'/'` */
  readonly cwd?: string;
  /**
   * Environment variables, over those of the VM; `undefined` removes one. The host's environment
   * is never passed on.
   */
  readonly env?: Environment;
  /**
   * Who runs the command: a name of the guest's `/etc/passwd`, or a number from 0 to 2^32 - 2. A
   * name that is not there is `ERR_VM_EXEC`; a number that is not there is used as it is, with the
   * group of the same number.
   *
   * `HOME`, `USER` and `LOGNAME` then come from `/etc/passwd` (`/` and none for a number that is not
   * there), unless `env` of this call names them; those of the VM's environment do not apply. The
   * directory is entered, and the program looked up, with the user's permissions.
   *
   * @defaultValue root
   */
  readonly user?: string | number;
  /** The group, of `/etc/group` or a number. @defaultValue the user's */
  readonly group?: string | number;
  /**
   * Supplementary groups, at most 1024.
   *
   * @defaultValue those of `/etc/group` that list the `user`; none for root
   */
  readonly groups?: readonly (string | number)[];
  /** Permission bits that files lack which the command makes, 0 to 0o777. @defaultValue `0o022` */
  readonly umask?: number;
  /**
   * Resource limits, with the names of limits.conf(5): a value is both the soft and the hard limit.
   * `nofile` and `nproc` (processes of the user; root has no such limit) are counts, `cpu` is in
   * seconds, and the others in bytes. What is not given is as in the guest at large.
   */
  readonly limits?: Readonly<
    Partial<
      Record<LimitName, LimitValue | { readonly soft: LimitValue; readonly hard: LimitValue }>
    >
  >;
  /**
   * Where standard input comes from.
   *
   * - `'pipe'`: {@link ExecProcess.stdin}; end of file at once if the handle is awaited and nobody
   *   took that stream.
   * - `'ignore'`: `/dev/null`.
   * - a `Readable`: it is piped in. When it fails, the command is killed and the handle rejects
   *   with its error.
   * - a `Uint8Array` or any other string: exactly these bytes, then end of file.
   *
   * @defaultValue `'pipe'`
   */
  readonly stdin?: 'pipe' | 'ignore' | Readable | Uint8Array | (string & {});
  /**
   * Where standard output goes.
   *
   * - `'pipe'`: {@link ExecProcess.stdout}, or the result if nobody took that stream.
   * - `'ignore'`: `/dev/null`.
   * - `'inherit'`: this process's standard output.
   * - a `Writable`: it is written to and ended behind the command (`process.stdout` and
   *   `process.stderr` are not ended). When it fails, the command is killed and the handle rejects
   *   with its error.
   *
   * @defaultValue `'pipe'`
   */
  readonly stdout?: 'pipe' | 'ignore' | 'inherit' | Writable;
  /** Where standard error goes, likewise. @defaultValue `'pipe'` */
  readonly stderr?: 'pipe' | 'ignore' | 'inherit' | Writable;
  /**
   * Runs the command in a terminal of its own: standard input, output and error are one pseudo
   * terminal, which controls the command's session, as for a shell that somebody types into. `true`
   * is one of 80 columns and 24 rows; {@link ExecProcess.resize} changes that.
   *
   * - All output is `stdout`, which must not be `'ignore'`; `stderr` is empty, and its option left out.
   * - What is written to `stdin` is typed. Its end types the terminal's end-of-file character (`^D`):
   *   once, so that one program reads an end of file. The terminal is hung up when the command ends.
   * - `TERM` is `xterm-256color` unless the environment has it, or names it with `undefined`.
   *
   * @defaultValue `false`
   */
  readonly pty?: boolean | TerminalSize;
  /**
   * Whether a command that exits with anything but 0 is an error, `ERR_VM_EXIT_STATUS`.
   *
   * @defaultValue `false`
   */
  readonly check?: boolean;
  /**
   * Longest time from the call to the command's end, in milliseconds, 1 to 2^31 - 1. Then the
   * process group is killed, and the handle rejects with `ERR_VM_TIMEOUT`. No default.
   */
  readonly timeoutMs?: number;
  /**
   * Aborts the command: its process group is killed, then the handle rejects with an `AbortError`
   * whose `cause` is the signal's reason.
   */
  readonly signal?: AbortSignal;
  /**
   * Whether what ends the command early (timeout, abort, too much output, leaving `lines()`) kills
   * whatever the command has started, daemons included: what leaves the process group as well. The
   * command then runs in a cgroup of its own. {@link ExecProcess.kill} still signals the process
   * group, and what a command leaves behind when it ends by itself goes on.
   *
   * @defaultValue `false`
   */
  readonly killTree?: boolean;
  /**
   * Most bytes of standard output, and of standard error, that are collected into the result, 0
   * to 2^31 - 1. Beyond it the command is killed and the handle rejects with `ERR_VM_MAX_OUTPUT`.
   * Streams that a caller took or gave have no limit. One line of {@link ExecProcess.lines} has it.
   *
   * @defaultValue 16 MiB
   */
  readonly maxOutputBytes?: number;
  /**
   * Encoding of the result's `stdout` and `stderr`; `'buffer'` for Buffers.
   *
   * @defaultValue `'utf8'`
   */
  readonly encoding?: BufferEncoding | 'buffer';
}

/** How a command ended: one of the two is `null`. */
export interface ExecStatus {
  /** Exit code, 0 to 255, or `null` when a signal ended the command. */
  readonly exitCode: number | null;
  /** The signal that ended the command, or `null`. */
  readonly signal: NodeJS.Signals | null;
}

/** What a command came to. A non-zero exit code is a result, not an error. */
export interface ExecResult<T extends string | Buffer = string> extends ExecStatus {
  /** Whether the exit code is 0. */
  readonly ok: boolean;
  /** Standard output, if it was collected; otherwise empty. */
  readonly stdout: T;
  /** Standard error, likewise. */
  readonly stderr: T;
  /** Time from the call to the result, in milliseconds. */
  readonly durationMs: number;
}

/**
 * A command in the guest, and the promise of its result.
 *
 * Nothing is read from the guest until somebody asks: awaiting collects the streams that no caller
 * took, and a command whose output nobody reads stops when its pipe is full. A handle that nobody
 * awaits never raises `unhandledRejection`.
 *
 * Returning a handle from an `async` function awaits it, as every promise: wrap it in an object to
 * hand it on while the command runs.
 */
export class ExecProcess<T extends string | Buffer = string> extends Promise<ExecResult<T>> {
  /** Promises derived from a handle are plain ones. */
  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }

  readonly #run: ExecRun<T>;

  /** @internal */
  constructor(run: ExecRun<T>) {
    super((resolve, reject) => {
      run.result.promise.then(resolve, reject);
    });
    this.#run = run;
    // Not `this.catch`, which would count as awaiting.
    super.then(undefined, () => {});
  }

  /**
   * Resolves when the command runs, with its id in this library and its process id in the guest.
   * Rejects as the handle does when it cannot be started.
   */
  get started(): Promise<{ id: string; pid: number }> {
    return this.#run.started;
  }

  /**
   * Standard input, with `stdin: 'pipe'`. Whoever takes it has to end it.
   *
   * @throws {TypeError} the option `stdin` is something else.
   */
  get stdin(): Writable {
    return this.#run.stdin.take();
  }

  /**
   * Standard output, with `stdout: 'pipe'`. Whoever takes it has to read it: the command waits
   * when `highWaterMark` bytes are unread. Take it before the handle is awaited. Destroying it
   * throws the rest of the output away; the command goes on.
   *
   * @throws {TypeError} the option `stdout` is something else, or the output is being collected.
   */
  get stdout(): Readable {
    return this.#run.stdout.take();
  }

  /**
   * Standard error, likewise.
   *
   * @throws {TypeError} the option `stderr` is something else, the output is being collected, or the
   *   command has a terminal, whose output is all of {@link stdout}.
   */
  get stderr(): Readable {
    return this.#run.stderr.take();
  }

  /**
   * Resolves with how the command ended, also when that is an error of the handle. Rejects as the
   * handle does when there is no such end.
   *
   * The end comes behind the output: asking for it collects the streams that no caller took, as
   * awaiting the handle does, but leaves standard input open.
   */
  get exited(): Promise<ExecStatus> {
    this.#run.wantExit();
    return this.#run.exited.promise;
  }

  /**
   * The lines of standard output as they come, without their ends (`\n` or `\r\n`).
   *
   * Iterating counts as awaiting, so that a failure of the command is thrown at the end. Leaving
   * the loop early kills the command's process group and waits until it is dead.
   *
   * @throws {TypeError} standard output is not a pipe, or was taken already.
   */
  lines(): AsyncIterableIterator<string> {
    return readLines(this, this.#run);
  }

  /**
   * Sends a signal to the command's process group. Says whether the command had not ended yet, as
   * far as the host knows.
   *
   * @throws {TypeError} not a signal.
   */
  kill(signal: NodeJS.Signals | number = 'SIGTERM'): boolean {
    return this.#run.kill(signalNumber(signal));
  }

  /**
   * Gives the command's terminal another size, of which the program in its foreground hears by
   * `SIGWINCH`. Nothing happens when the command has ended.
   *
   * @throws {TypeError} the command has no terminal; see {@link ExecOptions.pty}.
   * @throws {RangeError} `columns` or `rows` is not an integer from 1 to 65 535.
   */
  resize(size: TerminalSize): void {
    this.#run.resize(size);
  }

  // biome-ignore lint/suspicious/noThenProperty: a promise whose `then` starts the collecting
  override then<A = ExecResult<T>, B = never>(
    onFulfilled?: ((result: ExecResult<T>) => A | PromiseLike<A>) | null,
    onRejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#run.await();
    return super.then(onFulfilled, onRejected);
  }
}
