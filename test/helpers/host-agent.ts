// Runs the guest agent as an ordinary process of the host, and speaks the bare protocol with it:
// frames and windows are the test's own business here.

import { execFileSync, spawn } from 'node:child_process';
import type { Duplex } from 'node:stream';
import { fileURLToPath } from 'node:url';

import {
  DirentDecoder,
  type DirentRecord,
  type ExecRequest,
  encodeData,
  encodeEnd,
  encodeExec,
  encodeReaddir,
  encodeReadFile,
  encodeWriteFile,
  FILE_WINDOW_BYTES,
  FrameDecoder,
  type GuestMessage,
  INPUT_WINDOW_BYTES,
  MAX_PAYLOAD_BYTES,
  parseGuestMessage,
  type ReplyMessage,
  Stream,
  type WriteFileRequest,
} from '../../lib/internal/protocol/protocol.js';

const BUILD = fileURLToPath(new URL('../../guest/agent/build', import.meta.url));

/** A window that no test fills. */
export const WIDE_OPEN = 2 ** 40;

/** Builds the agent for the host, with sanitizers, unless that is done; returns its path. */
export function buildHostAgent(): string {
  const output = execFileSync(BUILD, ['--host-test', '--sanitize'], { encoding: 'utf8' });
  return output.trim();
}

export interface Collected extends ReplyMessage {
  pid: number | null;
  stdout: Buffer;
  stderr: Buffer;
}

/** One operation as the host sees it. */
export class TestOperation {
  readonly id: number;
  readonly messages: GuestMessage[] = [];
  inputLimit: number;
  inputSent = 0;
  readonly done: Promise<Collected>;
  readonly #chunks: Record<number, Buffer[]> = { [Stream.output]: [], [Stream.error]: [] };
  readonly #ended = new Set<number>();
  #resolve!: (value: Collected) => void;
  #reject!: (error: Error) => void;
  readonly #waiters: (() => void)[] = [];

  constructor(id: number, inputLimit: number) {
    this.id = id;
    this.inputLimit = inputLimit;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.done.catch(() => {});
  }

  received(stream: number): Buffer {
    return Buffer.concat(this.#chunks[stream] ?? []);
  }

  /** Resolves when `condition` holds, which is looked at after each message. */
  async until(condition: (operation: TestOperation) => boolean): Promise<void> {
    while (!condition(this)) {
      await Promise.race([
        new Promise<void>((resolve) => this.#waiters.push(resolve)),
        this.done.then(() => {
          if (!condition(this)) throw new Error('the operation ended before');
        }),
      ]);
    }
  }

  fail(error: Error): void {
    this.#reject(error);
  }

  take(message: GuestMessage): void {
    this.messages.push(message);
    if (message.type === 'data' || message.type === 'end') {
      this.#takeOutput(message);
    } else if (message.type === 'window') {
      this.inputLimit = message.limit;
    } else if (message.type === 'reply') {
      const started = this.messages.find((other) => other.type === 'started');
      this.#resolve({
        ...message,
        pid: started?.type === 'started' ? started.pid : null,
        stdout: this.received(Stream.output),
        stderr: this.received(Stream.error),
      });
    }
    for (const wake of this.#waiters.splice(0)) wake();
  }

  #takeOutput(message: GuestMessage & { type: 'data' | 'end' }): void {
    const { stream, offset } = message;
    const chunks = this.#chunks[stream] ?? [];
    const expected = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    if (offset !== expected || this.#ended.has(stream)) {
      this.#reject(new Error(`stream ${stream}: offset ${offset} instead of ${expected}`));
    }
    if (message.type === 'end') this.#ended.add(stream);
    else chunks.push(Buffer.from(message.bytes));
  }
}

export interface AgentExit {
  code: number | null;
  signal: string | null;
  /** Where sanitizers report. */
  stderr: string;
}

export class HostAgent {
  readonly socket: Duplex;
  readonly exited: Promise<AgentExit>;
  readonly pid: number;
  /** Messages that belong to no operation that the test has started. */
  readonly other: GuestMessage[] = [];
  readonly #operations = new Map<number, TestOperation>();
  readonly #decoder = new FrameDecoder();
  readonly #waiters: (() => void)[] = [];
  #nextId = 1;

  constructor(
    path: string,
    args: readonly string[] = [],
    env: Readonly<Record<string, string>> = {},
  ) {
    const child = spawn(path, args, {
      stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      // Looking for leaks takes /proc, which a confined agent does not have.
      env: {
        ASAN_OPTIONS: `detect_leaks=${args.length === 0 ? 1 : 0}`,
        UBSAN_OPTIONS: 'print_stacktrace=1',
        ...env,
      },
    });
    this.pid = child.pid ?? 0;
    this.socket = child.stdio[3] as Duplex;
    let stderr = '';
    child.stderr?.on('data', (text: Buffer) => {
      stderr += text.toString();
    });
    this.exited = new Promise((resolve) => {
      child.on('close', (code, signal) => resolve({ code, signal, stderr }));
    });
    this.socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      for (const operation of this.#operations.values()) operation.fail(new Error('agent is gone'));
    });
  }

  #receive(chunk: Buffer): void {
    for (const frame of this.#decoder.push(chunk)) {
      const message = parseGuestMessage(frame);
      const operation = this.#operations.get(frame.id);
      if (operation) operation.take(message);
      else this.other.push(message);
      if (message.type === 'reply') this.#operations.delete(message.id);
    }
    for (const wake of this.#waiters.splice(0)) wake();
  }

  send(...frames: Uint8Array[]): void {
    this.socket.write(Buffer.concat(frames));
  }

  /** Resolves with the first message outside of operations that `accept` likes, and takes it. */
  async next<T extends GuestMessage>(accept: (message: GuestMessage) => message is T): Promise<T> {
    for (;;) {
      const index = this.other.findIndex(accept);
      if (index >= 0) return this.other.splice(index, 1)[0] as T;
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  newId(): number {
    return this.#nextId++;
  }

  /** Starts an operation with the request that `encode` makes. */
  start(encode: (id: number) => Uint8Array, inputLimit = 0): TestOperation {
    const operation = new TestOperation(this.newId(), inputLimit);
    this.#operations.set(operation.id, operation);
    this.send(encode(operation.id));
    return operation;
  }

  spawn(args: readonly string[], options: Partial<ExecRequest> = {}): TestOperation {
    const request: ExecRequest = {
      args,
      env: ['PATH=/usr/bin:/bin'],
      stdout: true,
      stderr: true,
      outputLimit: WIDE_OPEN,
      errorLimit: WIDE_OPEN,
      ...options,
    };
    return this.start((id) => encodeExec(id, request), INPUT_WINDOW_BYTES);
  }

  exec(args: readonly string[], options: Partial<ExecRequest> = {}): Promise<Collected> {
    return this.spawn(args, options).done;
  }

  sh(script: string, options: Partial<ExecRequest> = {}): Promise<Collected> {
    return this.exec(['/bin/sh', '-c', script], options);
  }

  /** Sends all of `bytes` as the windows open, and the end. */
  async feed(operation: TestOperation, bytes: Uint8Array): Promise<void> {
    while (operation.inputSent < bytes.length) {
      await operation.until(({ inputLimit, inputSent }) => inputLimit > inputSent);
      const at = operation.inputSent;
      const end = Math.min(bytes.length, operation.inputLimit, at + MAX_PAYLOAD_BYTES);
      this.send(encodeData(operation.id, at, bytes.subarray(at, end)));
      operation.inputSent = end;
    }
    this.send(encodeEnd(operation.id, operation.inputSent));
  }

  readFile(path: string, options: { start?: number; byteCount?: number } = {}): Promise<Collected> {
    const request = { outputLimit: WIDE_OPEN, ...options };
    return this.start((id) => encodeReadFile(id, path, request)).done;
  }

  async writeFile(
    path: string,
    bytes: Uint8Array,
    options: WriteFileRequest = {},
  ): Promise<Collected> {
    const operation = this.start((id) => encodeWriteFile(id, path, options), FILE_WINDOW_BYTES);
    // A write that fails ends before its contents are through; the reply says why.
    await this.feed(operation, bytes).catch(() => {});
    return operation.done;
  }

  async readdir(
    path: string,
    options: { recursive?: boolean } = {},
  ): Promise<{ reply: Collected; entries: DirentRecord[] }> {
    const request = { outputLimit: WIDE_OPEN, ...options };
    const reply = await this.start((id) => encodeReaddir(id, path, request)).done;
    const decoder = new DirentDecoder(options);
    const entries = decoder.push(reply.stdout);
    decoder.end();
    return { reply, entries };
  }

  /** Ends the connection; resolves with how the agent took it. */
  async close(): Promise<AgentExit> {
    this.socket.end();
    return this.exited;
  }
}
