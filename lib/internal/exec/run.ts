// One command from its request to its result. `ExecProcess` is its public face.

import { AbortError, describeErrno, ExecError, VmError, type VmErrorCode } from '../../errors.js';
import type { ExecResult, ExecStatus, TerminalSize } from '../../exec.js';
import type { Operation } from '../agent/connection.js';
import { boundedCommand } from '../agent/state.js';
import { Deferred } from '../base/deferred.js';
import { type Observation, observe } from '../base/diagnostics.js';
import { encodeExec, MAX_EXEC_PAYLOAD_BYTES, type ReplyMessage } from '../protocol/protocol.js';
import { escapeControl } from '../vm/console-buffer.js';
import type { Guest } from '../vm/guest.js';
import { startFailure } from './failure.js';
import { type CheckedExec, checkTerminalSize, environmentList, requestBytes } from './options.js';
import { closeTargets, InputPort, OutputPort } from './ports.js';
import { signalName } from './signals.js';

/** Why a command is being ended before it is done. */
type Ending = { readonly kind: 'error'; readonly make: () => Error } | { readonly kind: 'left' };

const E2BIG = 7;

const runs = new WeakMap<Operation, unknown>();

export class ExecRun<T extends string | Buffer> {
  readonly stdin: InputPort;
  readonly stdout: OutputPort;
  readonly stderr: OutputPort;
  readonly result = new Deferred<ExecResult<T>>();
  readonly exited = new Deferred<ExecStatus>();
  readonly #startedAt = performance.now();
  readonly #startedAtMs = Date.now();
  readonly #site: { stack?: string } = {};
  readonly #guest: Guest;
  readonly #exec: CheckedExec;
  readonly #operation: Operation;
  readonly #observation: Observation;
  /** Names the command in this VM and its forks */
  readonly #id: string;
  #started: Deferred<{ id: string; pid: number }> | undefined;
  #wantsOutput = false;
  #endsInput = false;
  #ending: Ending | undefined;
  #timer: NodeJS.Timeout | undefined;
  #status: ExecStatus = { exitCode: null, signal: null };

  /** Who started the command of that operation, or attached to it. */
  static of<T extends string | Buffer>(operation: Operation): ExecRun<T> | undefined {
    return runs.get(operation) as ExecRun<T> | undefined;
  }

  /**
   * Starts a command, or takes over one that runs.
   *
   * @param callee - the function on the stack whose caller the stacks of errors begin with.
   */
  constructor(
    guest: Guest,
    exec: CheckedExec,
    callee: (...args: never[]) => unknown,
    running?: Operation,
  ) {
    this.#guest = guest;
    this.#exec = exec;
    this.#id = running?.command?.id ?? guest.nextCommandId();
    Error.captureStackTrace(this.#site, callee);
    this.#observation =
      running === undefined
        ? observe('exec', guest, 'exec', () => describe(exec))
        : observe('exec', guest, 'attach', () => ({ id: this.#id, command: exec.command }));
    this.#operation = running ?? this.#begin();
    runs.set(this.#operation, this);
    const lost = running?.output.lost ?? running?.error.lost;
    if (lost !== undefined) this.#ending = { kind: 'error', make: () => lost };
    const { input, output, error } = this.#operation;
    const overflow = (name: string) => () => this.#end(() => this.#overflow(name));
    this.stdin = new InputPort(exec.stdin, input);
    this.stdout = new OutputPort(
      'stdout',
      exec.stdout,
      output,
      exec.maxOutputBytes,
      overflow('stdout'),
    );
    this.stderr = new OutputPort(
      'stderr',
      exec.stderr,
      error,
      exec.maxOutputBytes,
      overflow('stderr'),
    );
    if (running !== undefined) this.stdin.connect();
    this.#run().catch((error: unknown) => this.#reject(error));
  }

  /** The caller wants the result: collects what nobody took and ends an input nobody writes. */
  await(): void {
    if (this.#endsInput) return;
    this.#endsInput = true;
    this.wantExit();
  }

  /** The caller wants the end, which comes behind the output: collects what nobody took. */
  wantExit(): void {
    this.#wantsOutput = true;
    // Later in this tick, so that streams taken right after `then` was called still count.
    if (this.#operation.sent) queueMicrotask(() => this.#claimUntaken());
  }

  get started(): Promise<{ id: string; pid: number }> {
    if (this.#started === undefined) {
      const started = new Deferred<{ id: string; pid: number }>();
      this.#started = started;
      this.#operation.started.then(
        (pid) => started.resolve({ id: this.#id, pid }),
        // The result knows better why it did not start.
        (error: unknown) => this.result.promise.then(() => started.reject(error), started.reject),
      );
      // The request has allowed the guest to hold the message back.
      const { sent, over, pid } = this.#operation;
      if (sent && !over && pid === undefined) this.#guest.agent.ping();
    }
    return this.#started.promise;
  }

  /** Sends a signal to the process group; says whether the command had not ended yet. */
  kill(signal: number): boolean {
    if (this.#operation.over) return false;
    this.#operation.signal(signal);
    return true;
  }

  /** Tells the command's terminal its size. */
  resize(size: TerminalSize): void {
    if (!this.#exec.pty) {
      throw new TypeError('The command has no terminal to resize; start it with the option "pty"');
    }
    this.#operation.resize(checkTerminalSize('size', size));
  }

  /** Ends a command whose output nobody reads on; its result says SIGKILL. */
  leave(): void {
    if (this.#operation.over || this.#ending !== undefined) return;
    this.#ending = { kind: 'left' };
    this.#operation.cancel();
  }

  /** `maxOutputBytes` was exceeded by one line. */
  failOverlongLine(): void {
    this.#end(() => this.#overflow('stdout'));
  }

  get maxOutputBytes(): number {
    return this.#exec.maxOutputBytes;
  }

  get encoding(): BufferEncoding | 'buffer' {
    return this.#exec.encoding;
  }

  #begin(): Operation {
    const { agent } = this.#guest;
    const refusal = this.#refusal();
    if (refusal !== undefined) return agent.refuse(refusal);
    return agent.begin('exec', (operation) => this.#encode(operation));
  }

  async #run(): Promise<void> {
    const { timeoutMs, signal, stdin } = this.#exec;
    const onAbort = (): void => this.#end(() => new AbortError(signal?.reason));
    let failure: Error | undefined;
    try {
      if (timeoutMs !== undefined) {
        this.#timer = setTimeout(
          () => this.#end(() => this.#timeout(timeoutMs)),
          timeoutMs,
        ).unref();
      }
      signal?.addEventListener('abort', onAbort, { once: true });
      const fail = (error: Error): void => this.#end(() => error);
      if (stdin !== 'pipe' && stdin !== 'ignore') this.stdin.feed(fail);
      this.stdout.forward(fail);
      this.stderr.forward(fail);
      this.#finish(await this.#operation.reply);
      await Promise.all([this.stdout.flushed(), this.stderr.flushed()]);
    } catch (error) {
      failure = this.#explain(error as Error);
    } finally {
      clearTimeout(this.#timer);
      signal?.removeEventListener('abort', onAbort);
      this.stdin.release();
    }
    await this.#settle(failure);
  }

  /** Turns the agent's reply into a status, or throws why there is none. */
  #finish(reply: ReplyMessage): void {
    const ending = this.#ending;
    // A command that was killed has a status as well, unless it never started.
    if (reply.errno !== 0 && ending === undefined) throw this.#refused(reply);
    if (reply.errno !== 0 && reply.signal === null && reply.exitCode === null) {
      throw ending?.kind === 'error' ? ending.make() : this.#refused(reply);
    }
    if (reply.signal !== null) {
      this.#status = { exitCode: null, signal: signalName(reply.signal) };
    } else if (reply.exitCode !== null) {
      this.#status = { exitCode: reply.exitCode, signal: null };
    } else {
      throw new VmError({
        code: 'ERR_VM_AGENT_PROTOCOL',
        message: 'The guest agent reported the end of a command without a status',
      });
    }
    this.exited.resolve(this.#status);
    if (ending?.kind === 'error') throw ending.make();
    if (this.#exec.check && this.#status.exitCode !== 0) {
      const { exitCode, signal } = this.#status;
      const how = signal === null ? `exited with code ${exitCode}` : `was ended by ${signal}`;
      throw this.#error('ERR_VM_EXIT_STATUS', `The command ${how}: ${this.#shown()}`);
    }
  }

  async #settle(failure: Error | undefined): Promise<void> {
    let error = failure;
    try {
      await closeTargets([this.stdout, this.stderr], error !== undefined);
      if (error === undefined) {
        const result = this.#result();
        this.#observation.succeed({ ...this.#status });
        this.result.resolve(result);
        return;
      }
    } catch (late) {
      error ??= late as Error;
    }
    this.#reject(error);
  }

  #reject(error: unknown): void {
    this.#observation.fail(error);
    this.exited.reject(error);
    this.result.reject(error);
  }

  #result(): ExecResult<T> {
    return {
      ok: this.#status.exitCode === 0,
      ...this.#status,
      stdout: this.#decode(this.stdout) as T,
      stderr: this.#decode(this.stderr) as T,
      durationMs: performance.now() - this.#startedAt,
    };
  }

  /** The error that the caller gets for what went wrong, with the output so far. */
  #explain(error: Error): Error {
    if (error instanceof AbortError) Object.assign(error, this.#output());
    // A VM that died, or an agent that did not confirm, says more than the timeout before it.
    const explained =
      error instanceof VmError && !(error instanceof ExecError)
        ? this.#error(error.code, error.message, error)
        : error;
    if (explained instanceof ExecError || explained instanceof AbortError) {
      explained.stack = `${explained.name}: ${explained.message}${this.#callSite()}`;
    }
    return explained;
  }

  /** Where the command was started, as the tail of a stack. */
  #callSite(): string {
    const stack = this.#site.stack ?? '';
    const end = stack.indexOf('\n');
    return end < 0 ? '' : stack.slice(end);
  }

  /** Ends the command in the guest; the promise rejects when its process group is dead. */
  #end(make: () => Error): void {
    if (this.#operation.over || this.#ending !== undefined) return;
    this.#ending = { kind: 'error', make };
    this.#operation.cancel();
  }

  #encode(operation: Operation): Buffer {
    this.#claimUntaken();
    const { command, args, env, cwd, identity, killTree, pty, terminalSize } = this.#exec;
    const streams = {
      stdin: this.stdin.connect(),
      stdout: this.stdout.connected,
      stderr: this.stderr.connected,
    };
    operation.command = {
      id: this.#id,
      command: boundedCommand(command),
      startedAtMs: this.#startedAtMs,
      pty,
      ...streams,
    };
    return encodeExec(operation.id, {
      args,
      env: environmentList(env),
      ...(cwd !== undefined && { cwd }),
      ...identity,
      killTree,
      ...(pty && { terminal: terminalSize }),
      ...streams,
      lazyStart: this.#started === undefined,
      outputLimit: operation.output.takeInitialLimit(),
      errorLimit: operation.error.takeInitialLimit(),
    });
  }

  /** Why the command is not even tried. */
  #refusal(): Error | undefined {
    if (this.#exec.signal?.aborted) return new AbortError(this.#exec.signal.reason);
    const bytes = requestBytes(this.#exec);
    if (bytes <= MAX_EXEC_PAYLOAD_BYTES) return undefined;
    return new VmError({
      code: 'ERR_VM_EXEC',
      message:
        'Cannot start the command: E2BIG: argument list too long, ' +
        `arguments and environment take ${bytes} bytes of at most ${MAX_EXEC_PAYLOAD_BYTES}`,
      errno: -E2BIG,
      syscall: 'execve',
    });
  }

  #claimUntaken(): void {
    if (this.#wantsOutput) {
      this.stdout.collect();
      this.stderr.collect();
    }
    if (this.#endsInput) this.stdin.endUntaken();
  }

  #decode(port: OutputPort): string | Buffer {
    const { encoding } = this.#exec;
    // A copy, since the collector's buffer may be up to twice as large.
    return encoding === 'buffer' ? Buffer.from(port.bytes) : port.bytes.toString(encoding);
  }

  #output(): { stdout: string | Buffer; stderr: string | Buffer } {
    return { stdout: this.#decode(this.stdout), stderr: this.#decode(this.stderr) };
  }

  #timeout(timeoutMs: number): ExecError {
    const message = `The command ran longer than ${timeoutMs} ms and was killed: ${this.#shown()}`;
    return this.#error('ERR_VM_TIMEOUT', message);
  }

  #overflow(name: string): ExecError {
    return this.#error(
      'ERR_VM_MAX_OUTPUT',
      `The command wrote more than ${this.#exec.maxOutputBytes} bytes to ${name} and was killed; ` +
        `raise maxOutputBytes or read ${name} as a stream: ${this.#shown()}`,
    );
  }

  /** The agent could not start the command, or killed it because it could not serve it. */
  #refused(reply: ReplyMessage): ExecError {
    const { code, text } = describeErrno(reply.errno);
    const errno = -reply.errno;
    if (reply.signal !== null || reply.exitCode !== null) {
      const message = `The guest agent ended the command: ${code}: ${text}`;
      return this.#error('ERR_VM_EXEC', message, undefined, { errno });
    }
    const { syscall, what, problem } = startFailure(this.#exec, reply);
    const message = `Cannot start the command: ${problem ?? `${code}: ${text}, ${what}`}`;
    return this.#error('ERR_VM_EXEC', message, undefined, { errno, syscall });
  }

  #error(
    code: VmErrorCode,
    message: string,
    origin?: VmError,
    system?: { errno: number; syscall?: string },
  ): ExecError {
    return new ExecError({
      code,
      message,
      command: this.#exec.command,
      ...this.#output(),
      ...this.#status,
      durationMs: performance.now() - this.#startedAt,
      ...(origin?.detail !== undefined && { detail: origin.detail }),
      ...(origin?.cause !== undefined && { cause: origin.cause }),
      ...(origin?.errno !== undefined && { errno: origin.errno }),
      ...(origin?.syscall !== undefined && { syscall: origin.syscall }),
      ...system,
    });
  }

  #shown(): string {
    const { command } = this.#exec;
    const text = typeof command === 'string' ? command : command.join(' ');
    return escapeControl(text.length > 200 ? `${text.slice(0, 200)}...` : text);
  }
}

function describe(exec: CheckedExec): Readonly<Record<string, unknown>> {
  return {
    command: exec.command,
    cwd: exec.cwd,
    ...(exec.identity.user !== undefined && { user: exec.identity.user }),
    ...(exec.pty && { pty: exec.terminalSize }),
    env: Object.keys(exec.env),
    timeoutMs: exec.timeoutMs,
    maxOutputBytes: exec.maxOutputBytes,
  };
}
