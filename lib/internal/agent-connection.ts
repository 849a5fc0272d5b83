// The control connection to one guest's agent: operations, their deadlines, and batching.
//
// The guest is hostile: everything that arrives is checked, and the first thing that no correct
// agent sends ends the connection with ERR_VM_AGENT_PROTOCOL. Memory stays bounded because the
// guest can send stream bytes only into windows that a reader opened, and because what waits for
// the guest to read is either one caller's own request or held back by MAX_IN_FLIGHT_BYTES.

import { VmError } from '../errors.js';
import { IncomingStream, OutgoingStream, type ScheduledStream } from './agent-streams.js';
import type { LoopHold } from './core.js';
import { Deferred } from './deferred.js';
import {
  encodeCancel,
  encodePing,
  encodeSignal,
  FILE_WINDOW_BYTES,
  FrameDecoder,
  type GuestMessage,
  INPUT_WINDOW_BYTES,
  PROTOCOL_VERSION,
  ProtocolError,
  parseGuestMessage,
  type ReplyMessage,
  Stream,
} from './protocol.js';

/** The bytes below: a vsock connection of a VM, or in tests a socket. */
export interface AgentTransport {
  send(data: Uint8Array): void;
  /** Bytes that were received are dealt with. */
  consume(bytes: number): void;
  disconnect(): void;
}

export interface Hello {
  /** Release of the guest's kernel. */
  readonly kernel: string;
  /** Version of the agent. */
  readonly agent: string;
}

/** Bytes on their way to the guest beyond which streams wait. */
const MAX_IN_FLIGHT_BYTES = 1024 * 1024;

/** While operations wait, the agent is asked this often whether it is there. */
const DEFAULT_PING_INTERVAL_MS = 10_000;

/** Intervals that may pass without an answer. */
const MAX_MISSED_PINGS = 3;

/** How long a cancelled operation may take to end. */
const DEFAULT_CANCEL_TIMEOUT_MS = 30_000;

/** A guest that stops closes its connection first: its exit, which says more, may follow. */
const DEFAULT_EXIT_GRACE_MS = 5_000;

export interface AgentConnectionOptions {
  readonly pingIntervalMs?: number;
  readonly cancelTimeoutMs?: number;
  readonly exitGraceMs?: number;
}

/** What kind of request it is decides which streams it has. */
export type OperationKind = 'exec' | 'write' | 'other';

/** One request to the agent, from its first frame to its reply. */
export class Operation {
  readonly id: number;
  readonly input: OutgoingStream;
  readonly output: IncomingStream;
  readonly error: IncomingStream;
  readonly #reply = new Deferred<ReplyMessage>();
  readonly #started = new Deferred<number>();
  readonly #connection: AgentConnection;
  readonly #encode: (operation: Operation) => Buffer;
  #sent = false;
  #over = false;
  #hasStarted = false;
  #cancelTimer: NodeJS.Timeout | undefined;

  constructor(
    connection: AgentConnection,
    id: number,
    kind: OperationKind,
    encode: (operation: Operation) => Buffer,
  ) {
    this.#connection = connection;
    this.id = id;
    this.#encode = encode;
    const inputWindow = kind === 'write' ? FILE_WINDOW_BYTES : INPUT_WINDOW_BYTES;
    this.input = new OutgoingStream(id, inputWindow, connection);
    this.output = new IncomingStream(id, Stream.output, connection);
    this.error = new IncomingStream(id, Stream.error, connection);
  }

  /** Resolves with the agent's reply, after which no frame of this operation follows. */
  get reply(): Promise<ReplyMessage> {
    return this.#reply.promise;
  }

  /** Resolves with the pid in the guest when the command runs. */
  get started(): Promise<number> {
    return this.#started.promise;
  }

  /** Whether the request has left, so that its options can no longer change. */
  get sent(): boolean {
    return this.#sent;
  }

  /** Whether the operation has ended, one way or another. */
  get over(): boolean {
    return this.#over;
  }

  /** Sends a signal to the command's process group. */
  signal(number: number): void {
    if (!this.#over) this.#connection.sendNow(() => encodeSignal(this.id, number));
  }

  /** Ends the operation in the guest. Its reply follows, within a deadline. */
  cancel(): void {
    if (this.#over || this.#cancelTimer !== undefined) return;
    this.#connection.sendNow(() => encodeCancel(this.id));
    this.#cancelTimer = this.#connection.startCancelTimer(this);
  }

  /** @internal Puts the request on the wire; called once by the connection. */
  encode(): Buffer {
    this.#sent = true;
    return this.#encode(this);
  }

  /** @internal */
  onMessage(
    message: Exclude<GuestMessage, { type: 'hello' | 'fatal' | 'reply' | 'renewed' }>,
  ): void {
    switch (message.type) {
      case 'started':
        if (this.#hasStarted) throw new ProtocolError(`operation ${this.id} started twice`);
        this.#hasStarted = true;
        this.#started.resolve(message.pid);
        return;
      case 'data':
        this.#stream(message.stream).receive(message.offset, message.bytes);
        return;
      case 'end':
        this.#stream(message.stream).end(message.offset);
        return;
      case 'window':
        this.input.extend(message.limit);
        return;
    }
  }

  /** @internal */
  finish(reply: ReplyMessage): void {
    this.#end();
    this.input.close();
    this.output.finish();
    this.error.finish();
    this.#started.reject(new Error('The command did not start'));
    this.#reply.resolve(reply);
  }

  /** @internal */
  fail(error: Error): void {
    this.#end();
    this.input.close(error);
    this.output.fail(error);
    this.error.fail(error);
    this.#started.reject(error);
    this.#reply.reject(error);
  }

  #end(): void {
    this.#over = true;
    clearTimeout(this.#cancelTimer);
  }

  #stream(stream: number): IncomingStream {
    return stream === Stream.output ? this.output : this.error;
  }
}

function protocolError(message: string, cause?: Error): VmError {
  return new VmError({
    code: 'ERR_VM_AGENT_PROTOCOL',
    message: `${message}; the VM can only be closed`,
    ...(cause !== undefined && { cause }),
  });
}

export class AgentConnection {
  readonly #transport: AgentTransport;
  readonly #hold: LoopHold;
  readonly #pingIntervalMs: number;
  readonly #cancelTimeoutMs: number;
  readonly #exitGraceMs: number;
  readonly #decoder = new FrameDecoder();
  readonly #hello = new Deferred<Hello>();
  #greeted = false;

  readonly #operations = new Map<number, Operation>();
  /** Given up here, but the agent may still send frames of them until its reply. */
  readonly #abandoned = new Set<number>();
  #lastId = 0;

  #outbox: (Buffer | (() => Buffer))[] = [];
  readonly #scheduled = new Set<ScheduledStream>();
  #flushQueued = false;
  #inFlight = 0;

  #watchdog: NodeJS.Timeout | undefined;
  #graceTimer: NodeJS.Timeout | undefined;
  #pingId = 0;
  #missedPings = 0;
  #failure: (() => Error) | undefined;

  constructor(transport: AgentTransport, hold: LoopHold, options: AgentConnectionOptions = {}) {
    this.#transport = transport;
    this.#hold = hold;
    this.#pingIntervalMs = options.pingIntervalMs ?? DEFAULT_PING_INTERVAL_MS;
    this.#cancelTimeoutMs = options.cancelTimeoutMs ?? DEFAULT_CANCEL_TIMEOUT_MS;
    this.#exitGraceMs = options.exitGraceMs ?? DEFAULT_EXIT_GRACE_MS;
  }

  /** Resolves with the agent's first frame. */
  get hello(): Promise<Hello> {
    return this.#hello.promise;
  }

  /**
   * Starts an operation. `encode` is called when the batch of this tick leaves, so that it can
   * carry whatever the caller has decided by then.
   */
  begin(kind: OperationKind, encode: (operation: Operation) => Buffer): Operation {
    if (this.#failure !== undefined) return this.refuse(this.#failure());
    const operation = new Operation(this, this.#nextId(), kind, encode);
    this.#operations.set(operation.id, operation);
    this.#hold.acquire();
    if (this.#operations.size === 1) this.#startWatchdog();
    this.sendNow(() => operation.encode());
    return operation;
  }

  /** An operation that is over before it began. */
  refuse(error: Error): Operation {
    const operation = new Operation(this, 0, 'other', () => Buffer.alloc(0));
    operation.fail(error);
    return operation;
  }

  /** Ends every operation with an error of its own, and all later ones; the last reason counts. */
  fail(failure: () => Error): void {
    const failed = this.#failure !== undefined;
    this.#failure = failure;
    if (failed) return;
    clearTimeout(this.#graceTimer);
    this.#outbox = [];
    this.#scheduled.clear();
    this.#abandoned.clear();
    this.#hello.reject(failure());
    for (const operation of [...this.#operations.values()]) {
      this.#forget(operation);
      operation.fail(failure());
    }
  }

  // From the transport.

  receive(data: Uint8Array): void {
    if (this.#failure !== undefined) return;
    try {
      for (const frame of this.#decoder.push(data)) this.#dispatch(parseGuestMessage(frame));
    } catch (cause) {
      if (!(cause instanceof ProtocolError)) throw cause;
      this.#breakOff(`The guest agent broke the protocol: ${cause.message}`, cause);
      return;
    }
    this.#transport.consume(data.length);
  }

  /** That many bytes have reached the guest. */
  sent(bytes: number): void {
    this.#inFlight = Math.max(0, this.#inFlight - bytes);
    if (this.#scheduled.size > 0) this.#queueFlush();
  }

  /** The guest closed the connection. */
  closed(): void {
    if (this.#failure !== undefined || this.#graceTimer !== undefined) return;
    this.#graceTimer = setTimeout(() => {
      this.fail(() => protocolError('The guest agent closed its connection'));
    }, this.#exitGraceMs).unref();
  }

  // For operations and streams.

  /** @internal Sends a frame with the batch of this tick, in order. */
  sendNow(frame: () => Buffer): void {
    if (this.#failure !== undefined) return;
    this.#outbox.push(frame);
    this.#queueFlush();
  }

  /** @internal Asks the agent for an answer, which makes it send what it held back. */
  ping(): void {
    if (this.#pingId !== 0 || this.#failure !== undefined) return;
    const id = this.#nextId();
    this.#pingId = id;
    this.sendNow(() => encodePing(id));
  }

  /** @internal */
  schedule(stream: ScheduledStream): void {
    if (this.#failure !== undefined) return;
    this.#scheduled.add(stream);
    this.#queueFlush();
  }

  /** @internal */
  startCancelTimer(operation: Operation): NodeJS.Timeout {
    return setTimeout(() => {
      this.#abandon(operation, 'The guest agent did not end an operation that was cancelled');
    }, this.#cancelTimeoutMs).unref();
  }

  #nextId(): number {
    do {
      this.#lastId = (this.#lastId + 1) >>> 0 || 1;
    } while (
      this.#operations.has(this.#lastId) ||
      this.#abandoned.has(this.#lastId) ||
      this.#lastId === this.#pingId
    );
    return this.#lastId;
  }

  // One send a tick. Two microtasks later, because a caller's `await` on what was just started
  // runs in the first one, and decides what the request says.
  #queueFlush(): void {
    if (this.#flushQueued) return;
    this.#flushQueued = true;
    queueMicrotask(() => queueMicrotask(() => this.#flush()));
  }

  #flush(): void {
    this.#flushQueued = false;
    if (this.#failure !== undefined) return;
    const batch: Buffer[] = [];
    let bytes = 0;
    for (const entry of this.#outbox.splice(0)) {
      const frame = typeof entry === 'function' ? entry() : entry;
      batch.push(frame);
      bytes += frame.length;
    }
    // One frame of each stream in turn, so that a large transfer does not starve the others.
    while (this.#inFlight + bytes < MAX_IN_FLIGHT_BYTES) {
      const [stream] = this.#scheduled;
      if (stream === undefined) break;
      this.#scheduled.delete(stream);
      const frame = stream.nextFrame();
      if (frame === undefined) continue;
      this.#scheduled.add(stream);
      batch.push(frame);
      bytes += frame.length;
    }
    if (bytes === 0) return;
    this.#inFlight += bytes;
    this.#transport.send(batch.length === 1 ? (batch[0] as Buffer) : Buffer.concat(batch, bytes));
  }

  #dispatch(message: GuestMessage): void {
    if (!this.#greeted) {
      this.#greet(message);
      return;
    }
    switch (message.type) {
      case 'hello':
        throw new ProtocolError('a second hello');
      case 'fatal':
        this.#breakOff(`The guest agent gave up: ${message.reason}`);
        return;
      case 'reply':
        this.#onReply(message);
        return;
      case 'renewed':
        throw new ProtocolError('a renewal that nobody waits for');
      default: {
        const operation = this.#operations.get(message.id);
        if (operation !== undefined) operation.onMessage(message);
        else if (!this.#abandoned.has(message.id)) {
          throw new ProtocolError(`${message.type} for operation ${message.id}, which is not live`);
        }
      }
    }
  }

  #greet(message: GuestMessage): void {
    if (message.type === 'fatal') {
      this.#breakOff(`The guest agent gave up: ${message.reason}`);
      return;
    }
    if (message.type !== 'hello') throw new ProtocolError(`${message.type} before hello`);
    if (message.version !== PROTOCOL_VERSION) {
      throw new ProtocolError(`version ${message.version} instead of ${PROTOCOL_VERSION}`);
    }
    this.#greeted = true;
    this.#hello.resolve({ kernel: message.kernel, agent: message.agent });
  }

  #onReply(reply: ReplyMessage): void {
    if (reply.id === this.#pingId && this.#pingId !== 0) {
      this.#pingId = 0;
      this.#missedPings = 0;
      return;
    }
    if (this.#abandoned.delete(reply.id)) return;
    const operation = this.#operations.get(reply.id);
    if (operation === undefined || !operation.sent) {
      throw new ProtocolError(`reply for operation ${reply.id}, which is not live`);
    }
    this.#forget(operation);
    operation.finish(reply);
  }

  #breakOff(message: string, cause?: Error): void {
    this.#transport.disconnect();
    this.fail(() => protocolError(message, cause));
  }

  #forget(operation: Operation): void {
    if (!this.#operations.delete(operation.id)) return;
    this.#scheduled.delete(operation.input);
    this.#scheduled.delete(operation.output);
    this.#scheduled.delete(operation.error);
    if (this.#operations.size === 0) this.#stopWatchdog();
    this.#hold.release();
  }

  #abandon(operation: Operation, message: string): void {
    if (operation.over) return;
    this.#forget(operation);
    this.#abandoned.add(operation.id);
    this.sendNow(() => encodeCancel(operation.id));
    operation.fail(new VmError({ code: 'ERR_VM_AGENT_UNRESPONSIVE', message }));
  }

  // Counts intervals rather than time: a process that was stopped for a minute wakes up to expired
  // timers and unread answers alike.
  #startWatchdog(): void {
    this.#missedPings = 0;
    this.#watchdog = setInterval(() => {
      if (this.#pingId === 0) {
        this.ping();
        return;
      }
      if (++this.#missedPings < MAX_MISSED_PINGS) return;
      this.#missedPings = 0;
      const seconds = (MAX_MISSED_PINGS * this.#pingIntervalMs) / 1000;
      for (const operation of [...this.#operations.values()]) {
        this.#abandon(operation, `The guest agent has not answered for ${seconds} s`);
      }
    }, this.#pingIntervalMs).unref();
  }

  #stopWatchdog(): void {
    clearInterval(this.#watchdog);
    this.#watchdog = undefined;
  }
}
