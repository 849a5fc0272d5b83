// The control connection to one guest's agent: frames, their batching and their deadlines.
//
// The guest is hostile: everything that arrives is checked, and the first thing that no correct
// agent sends ends the connection with ERR_VM_AGENT_PROTOCOL. Memory stays bounded because the
// guest can send stream bytes only into windows that a reader opened, and because what waits for
// the guest to read is either one caller's own request or held back by MAX_IN_FLIGHT_BYTES.

import { VmError } from '../../errors.js';
import { Deferred } from '../base/deferred.js';
import type { LoopHold } from '../core.js';
import {
  encodeCancel,
  encodePark,
  encodePing,
  encodeRenew,
  FrameDecoder,
  type GuestMessage,
  type ParkMode,
  PROTOCOL_VERSION,
  ProtocolError,
  parseGuestMessage,
  type RenewedMessage,
} from '../protocol/protocol.js';
import { AgentGate } from './gate.js';
import { Operation, type OperationHost, type OperationKind } from './operation.js';
import { AgentOperations, type RunningCommand } from './operations.js';
import type { AgentState } from './state.js';
import type { ScheduledStream } from './streams.js';
import { Watchdog } from './watchdog.js';

export { Operation, type OperationKind } from './operation.js';

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

/** How long a cancelled operation may take to end. */
const DEFAULT_CANCEL_TIMEOUT_MS = 30_000;

/** A guest that stops closes its connection first: its exit, which says more, may follow. */
const DEFAULT_EXIT_GRACE_MS = 5_000;

export interface AgentConnectionOptions {
  /** Where the connection stands that goes on in a fork; absent for a guest that boots. */
  readonly state?: AgentState;
  /** The guest says that it was renewed. Throws ProtocolError when it was not asked to be. */
  readonly onRenewed?: (message: RenewedMessage) => void;
  /** The connection is of no more use; a sentence without its subject says why. */
  readonly onBroken?: (problem: string) => void;
  readonly pingIntervalMs?: number;
  readonly cancelTimeoutMs?: number;
  readonly exitGraceMs?: number;
}

function protocolError(message: string, cause?: Error): VmError {
  return new VmError({
    code: 'ERR_VM_AGENT_PROTOCOL',
    message: `${message}; the VM can only be closed`,
    ...(cause !== undefined && { cause }),
  });
}

export class AgentConnection implements OperationHost {
  /** Holds back everything but {@link renew}. */
  readonly gate = new AgentGate(() => this.#queueFlush());
  readonly #transport: AgentTransport;
  readonly #onRenewed: AgentConnectionOptions['onRenewed'];
  readonly #onBroken: AgentConnectionOptions['onBroken'];
  readonly #cancelTimeoutMs: number;
  readonly #exitGraceMs: number;
  readonly #decoder = new FrameDecoder();
  readonly #hello = new Deferred<Hello>();
  #greeting: Hello | undefined;

  readonly #operations: AgentOperations;
  readonly #watchdog: Watchdog;
  #park: Operation | undefined;

  #outbox: (Buffer | (() => Buffer))[] = [];
  readonly #scheduled = new Set<ScheduledStream>();
  #flushQueued = false;
  #inFlight = 0;

  #graceTimer: NodeJS.Timeout | undefined;
  #suspension: (() => Error) | undefined;
  #failure: (() => Error) | undefined;

  constructor(transport: AgentTransport, hold: LoopHold, options: AgentConnectionOptions = {}) {
    this.#transport = transport;
    this.#onRenewed = options.onRenewed;
    this.#onBroken = options.onBroken;
    this.#cancelTimeoutMs = options.cancelTimeoutMs ?? DEFAULT_CANCEL_TIMEOUT_MS;
    this.#exitGraceMs = options.exitGraceMs ?? DEFAULT_EXIT_GRACE_MS;
    this.#operations = new AgentOperations(this, hold);
    this.#watchdog = new Watchdog(
      {
        isHeldBack: () => this.gate.closed,
        isPinging: () => this.#operations.pingId !== 0,
        ping: () => this.ping(),
        onSilence: (seconds) => this.#abandonAll(seconds),
      },
      options.pingIntervalMs ?? DEFAULT_PING_INTERVAL_MS,
    );
    if (options.state !== undefined) this.#restore(options.state);
  }

  /** Resolves with the agent's first frame. */
  get hello(): Promise<Hello> {
    return this.#hello.promise;
  }

  /** Why every operation is refused, if it is. */
  get failure(): Error | undefined {
    return this.#failure?.();
  }

  /**
   * Starts an operation. `encode` is called when the batch of this tick leaves, so that it can
   * carry whatever the caller has decided by then.
   */
  begin(kind: OperationKind, encode: (operation: Operation) => Buffer): Operation {
    const refusal = this.#failure ?? this.#suspension;
    if (refusal !== undefined) return this.refuse(refusal());
    const operation = this.#operations.create(kind, encode);
    this.#watchdog.start();
    this.sendNow(() => operation.encode());
    return operation;
  }

  /** An operation that is over before it began. */
  refuse(error: Error): Operation {
    const operation = new Operation(this, 0, 'other', () => Buffer.alloc(0));
    operation.fail(error);
    return operation;
  }

  /**
   * Asks the agent to park. Behind that frame nothing leaves until `gate.open('freeze')`; `isOver`
   * says that the caller has lost interest before the frame left.
   */
  park(mode: (typeof ParkMode)[keyof typeof ParkMode], isOver: () => boolean): Operation {
    this.#park = this.begin('other', ({ id }) => {
      if (!isOver()) this.gate.close('freeze');
      return encodePark(id, mode);
    });
    return this.#park;
  }

  /** Resolves when the agent has answered the last request to park, however that ended. */
  async parkAnswered(): Promise<void> {
    if (this.#park?.over === false) await this.#park.reply.catch(() => {});
  }

  /** Asks the agent to make its machine unique, whatever the gate holds back. */
  renew(): void {
    if (this.#failure === undefined) this.#send(encodeRenew());
  }

  /** Commands that run in the guest, as far as their pids are known. */
  get commands(): RunningCommand[] {
    return this.#operations.commands.flatMap(({ command, pid }) =>
      command !== undefined && pid !== undefined ? { ...command, pid } : [],
    );
  }

  /** Resolves when the pid of every command is known that was sent before. */
  async commandsStarted(): Promise<void> {
    const { starting } = this.#operations;
    if (starting.length === 0) return;
    if (this.#suspension !== undefined) throw this.#suspension();
    this.ping();
    await Promise.all(starting.map(({ started }) => started.catch(() => {})));
    if (this.#failure !== undefined) throw this.#failure();
  }

  /** The command of that name, if it runs, or has ended in a fork where nobody saw it. */
  attach(name: string): Operation | undefined {
    const operation = this.#operations.attach(name);
    if (operation !== undefined && !operation.over) this.#watchdog.start();
    return operation;
  }

  /** Where the connection stands, for forks; while the VM is frozen and nothing is in flight. */
  exportState(): Omit<AgentState, 'generation'> {
    const { kernel, agent } = this.#greeting ?? { kernel: '', agent: '' };
    const remainder = this.#decoder.pending.toString('base64');
    return { kernel, agent, remainder, ...this.#operations.exportState() };
  }

  #restore(state: AgentState): void {
    this.#greeting = { kernel: state.kernel, agent: state.agent };
    this.#hello.resolve(this.#greeting);
    this.#decoder.push(Buffer.from(state.remainder, 'base64'));
    // They leave with whatever is sent first, and cause no sending themselves.
    this.#outbox.push(...this.#operations.restore(state));
  }

  /** While there is a suspension, operations are refused with it, and frames wait. */
  suspend(suspension: () => Error): void {
    this.#suspension = suspension;
    this.gate.close('pause');
  }

  resume(): void {
    this.#suspension = undefined;
    this.gate.open('pause');
  }

  /** Ends every operation with an error of its own, and all later ones; the last reason counts. */
  fail(failure: () => Error): void {
    const failed = this.#failure !== undefined;
    this.#failure = failure;
    if (failed) return;
    clearTimeout(this.#graceTimer);
    this.#watchdog.stop();
    this.#outbox = [];
    this.#scheduled.clear();
    this.#hello.reject(failure());
    for (const operation of this.#operations.takeAll()) operation.fail(failure());
  }

  // From the transport.

  receive(data: Uint8Array): void {
    if (this.#failure !== undefined) return;
    try {
      for (const frame of this.#decoder.push(data)) this.#dispatch(parseGuestMessage(frame));
    } catch (cause) {
      if (!(cause instanceof ProtocolError)) throw cause;
      this.#breakOff(`broke the protocol: ${cause.message}`, cause);
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
      this.#broken('closed its connection');
    }, this.#exitGraceMs).unref();
  }

  // For operations and streams.

  sendNow(frame: () => Buffer): void {
    if (this.#failure !== undefined) return;
    this.#outbox.push(frame);
    this.#queueFlush();
  }

  /** @internal Asks the agent for an answer, which makes it send what it held back. */
  ping(): void {
    if (this.#operations.pingId !== 0 || this.#failure !== undefined) return;
    const id = this.#operations.nextId();
    this.#operations.pingId = id;
    this.sendNow(() => encodePing(id));
  }

  schedule(stream: ScheduledStream): void {
    if (this.#failure !== undefined) return;
    this.#scheduled.add(stream);
    this.#queueFlush();
  }

  startCancelTimer(operation: Operation): NodeJS.Timeout {
    const timer = setTimeout(() => {
      // An agent that the request could not reach has not failed to answer it.
      if (this.gate.closed) timer.refresh();
      else this.#abandon(operation, 'The guest agent did not end an operation that was cancelled');
    }, this.#cancelTimeoutMs).unref();
    return timer;
  }

  // One send a tick. Two microtasks later, because a caller's `await` on what was just started
  // runs in the first one, and decides what the request says.
  #queueFlush(): void {
    if (this.gate.closed) {
      this.gate.held();
      return;
    }
    if (this.#flushQueued) return;
    this.#flushQueued = true;
    queueMicrotask(() => queueMicrotask(() => this.#flush()));
  }

  #flush(): void {
    this.#flushQueued = false;
    if (this.#failure !== undefined) return;
    const batch: Buffer[] = [];
    let bytes = 0;
    let taken = 0;
    // A frame that asks the agent to park closes the gate behind itself.
    while (!this.gate.closed && taken < this.#outbox.length) {
      const entry = this.#outbox[taken++] as Buffer | (() => Buffer);
      const frame = typeof entry === 'function' ? entry() : entry;
      batch.push(frame);
      bytes += frame.length;
    }
    this.#outbox.splice(0, taken);
    // One frame of each stream in turn, so that a large transfer does not starve the others.
    while (!this.gate.closed && this.#inFlight + bytes < MAX_IN_FLIGHT_BYTES) {
      const [stream] = this.#scheduled;
      if (stream === undefined) break;
      this.#scheduled.delete(stream);
      const frame = stream.nextFrame();
      if (frame === undefined) continue;
      this.#scheduled.add(stream);
      batch.push(frame);
      bytes += frame.length;
    }
    if (bytes > 0) this.#send(batch.length === 1 ? (batch[0] as Buffer) : Buffer.concat(batch));
    if (this.gate.closed && this.#outbox.length + this.#scheduled.size > 0) this.gate.held();
  }

  #send(bytes: Buffer): void {
    this.#inFlight += bytes.length;
    this.#transport.send(bytes);
  }

  #dispatch(message: GuestMessage): void {
    if (this.#greeting === undefined) {
      this.#greet(message);
      return;
    }
    // Whatever it says: with many commands to start before the ping, its answer takes its time.
    this.#watchdog.answered();
    switch (message.type) {
      case 'hello':
        throw new ProtocolError('a second hello');
      case 'fatal':
        this.#breakOff(`gave up: ${message.reason}`);
        return;
      case 'renewed':
        if (this.#onRenewed === undefined) throw new ProtocolError('a renewal of no fork');
        this.#onRenewed(message);
        return;
      case 'reply':
        this.#onReply(message);
        return;
      default:
        this.#operations.expect(message.id, message.type)?.onMessage(message);
    }
  }

  #greet(message: GuestMessage): void {
    if (message.type === 'fatal') {
      this.#breakOff(`gave up: ${message.reason}`);
      return;
    }
    if (message.type !== 'hello') throw new ProtocolError(`${message.type} before hello`);
    if (message.version !== PROTOCOL_VERSION) {
      throw new ProtocolError(`version ${message.version} instead of ${PROTOCOL_VERSION}`);
    }
    this.#greeting = { kernel: message.kernel, agent: message.agent };
    this.#hello.resolve(this.#greeting);
  }

  #onReply(reply: Extract<GuestMessage, { type: 'reply' }>): void {
    if (reply.id === this.#operations.pingId && reply.id !== 0) {
      this.#operations.pingId = 0;
      return;
    }
    const operation = this.#operations.finish(reply);
    if (operation === undefined) return;
    this.#settled(operation);
    operation.finish(reply);
  }

  #breakOff(problem: string, cause?: Error): void {
    this.#transport.disconnect();
    this.#broken(problem, cause);
  }

  #broken(problem: string, cause?: Error): void {
    this.fail(() => protocolError(`The guest agent ${problem}`, cause));
    this.#onBroken?.(problem);
  }

  /** An operation is over: nothing of it is sent any more. */
  #settled(operation: Operation): void {
    this.#scheduled.delete(operation.input);
    this.#scheduled.delete(operation.output);
    this.#scheduled.delete(operation.error);
    if (this.#operations.waiting === 0) this.#watchdog.stop();
  }

  #abandon(operation: Operation, message: string): void {
    if (operation.over) return;
    this.#operations.abandon(operation);
    this.#settled(operation);
    this.sendNow(() => encodeCancel(operation.id));
    operation.fail(new VmError({ code: 'ERR_VM_AGENT_UNRESPONSIVE', message }));
  }

  #abandonAll(seconds: number): void {
    const message = `The guest agent has not answered for ${seconds} s`;
    for (const operation of this.#operations.waitedFor) this.#abandon(operation, message);
  }
}
