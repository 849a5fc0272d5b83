import type { TerminalSize } from '../../exec.js';
import { Deferred } from '../base/deferred.js';
import {
  type CancelMode,
  encodeCancel,
  encodeResize,
  encodeSignal,
  FILE_WINDOW_BYTES,
  type GuestMessage,
  INPUT_WINDOW_BYTES,
  ProtocolError,
  type ReplyMessage,
  Stream,
} from '../protocol/protocol.js';
import type { CommandInfo, CommandState } from './state.js';
import {
  IncomingStream,
  OutgoingStream,
  type StreamScheduler,
  type UnreadRoom,
} from './streams.js';

/** What kind of request it is decides which streams it has. */
export type OperationKind = 'exec' | 'write' | 'connect' | 'other';

/** What comes of an operation before its reply. */
export type OperationMessage = Extract<
  GuestMessage,
  { type: 'started' | 'connected' | 'data' | 'end' | 'window' }
>;

/** What an operation needs of its connection. */
export interface OperationHost extends StreamScheduler {
  /** Sends a frame with the batch of this tick, in order. */
  sendNow(frame: () => Buffer): void;
  startCancelTimer(operation: Operation): NodeJS.Timeout;
}

/** One request to the agent, from its first frame to its reply. */
export class Operation {
  readonly id: number;
  readonly kind: OperationKind;
  readonly input: OutgoingStream;
  readonly output: IncomingStream;
  readonly error: IncomingStream;
  /** Of a command, once its request has left. */
  command: CommandInfo | undefined;
  /** Called where the reply stands among the frames, before those behind it are looked at. */
  onReply: (() => void) | undefined;
  /** Called when a connection is there; only for those. */
  onConnected: (() => void) | undefined;
  readonly #reply = new Deferred<ReplyMessage>();
  readonly #started = new Deferred<number>();
  readonly #host: OperationHost;
  readonly #encode: (operation: Operation) => Buffer;
  #sent = false;
  #over = false;
  #pid: number | undefined;
  #connected = false;
  #cancelTimer: NodeJS.Timeout | undefined;

  constructor(
    host: OperationHost,
    id: number,
    kind: OperationKind,
    encode: (operation: Operation) => Buffer,
  ) {
    this.#host = host;
    this.id = id;
    this.kind = kind;
    this.#encode = encode;
    const inputWindow = kind === 'write' ? FILE_WINDOW_BYTES : INPUT_WINDOW_BYTES;
    this.input = new OutgoingStream(id, inputWindow, host);
    this.output = new IncomingStream(id, Stream.output, host);
    this.error = new IncomingStream(id, Stream.error, host);
  }

  /** A command that goes on in a fork, where nobody has taken its streams yet. */
  static restore(host: OperationHost, state: CommandState, room: SharedRoom): Operation {
    const { operation: id, pid, input, output, error, ...command } = state;
    const operation = new Operation(host, id, 'exec', () => Buffer.alloc(0));
    operation.command = command;
    operation.#sent = true;
    const unread: UnreadRoom = {
      take: (bytes) => {
        const failure = room.take(bytes);
        // A command whose output cannot be kept must not go on as if it had been.
        if (failure !== undefined) operation.cancel();
        return failure;
      },
      give: (bytes) => room.give(bytes),
    };
    operation.input.restore(input);
    operation.output.restore(output, unread);
    operation.error.restore(error, unread);
    if (pid !== null) operation.#setPid(pid);
    return operation;
  }

  /** Resolves with the agent's reply, after which no frame of this operation follows. */
  get reply(): Promise<ReplyMessage> {
    return this.#reply.promise;
  }

  /** Resolves with the pid in the guest when the command runs. */
  get started(): Promise<number> {
    return this.#started.promise;
  }

  /** The pid in the guest, once it is known. */
  get pid(): number | undefined {
    return this.#pid;
  }

  /** Whether the request has left, so that its options can no longer change. */
  get sent(): boolean {
    return this.#sent;
  }

  /** Whether the operation has ended, one way or another. */
  get over(): boolean {
    return this.#over;
  }

  /** A command's state for a fork, or `undefined` for what is no running command. */
  get commandState(): CommandState | undefined {
    if (this.command === undefined || !this.#sent || this.#over) return undefined;
    return {
      ...this.command,
      operation: this.id,
      pid: this.#pid ?? null,
      input: this.input.state,
      output: this.output.state,
      error: this.error.state,
    };
  }

  /** Sends a signal to the command's process group. */
  signal(number: number): void {
    if (!this.#over) this.#host.sendNow(() => encodeSignal(this.id, number));
  }

  /** Gives the command's terminal another size. */
  resize(size: TerminalSize): void {
    if (!this.#over) this.#host.sendNow(() => encodeResize(this.id, size));
  }

  /** Ends the operation in the guest. Its reply follows, within a deadline. */
  cancel(mode?: CancelMode): void {
    if (this.#over || this.#cancelTimer !== undefined) return;
    this.#host.sendNow(() => encodeCancel(this.id, mode));
    this.#cancelTimer = this.#host.startCancelTimer(this);
  }

  /** @internal Puts the request on the wire; called once by the connection. */
  encode(): Buffer {
    this.#sent = true;
    return this.#encode(this);
  }

  /** @internal */
  onMessage(message: OperationMessage): void {
    switch (message.type) {
      case 'connected':
        if (this.kind !== 'connect' || this.#connected) {
          throw new ProtocolError(`operation ${this.id} has a connection that it did not ask for`);
        }
        this.#connected = true;
        this.onConnected?.();
        return;
      case 'started':
        if (this.#pid !== undefined) throw new ProtocolError(`operation ${this.id} started twice`);
        this.#setPid(message.pid);
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
    this.onReply?.();
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

  #setPid(pid: number): void {
    this.#pid = pid;
    this.#started.resolve(pid);
  }

  #stream(stream: number): IncomingStream {
    return stream === Stream.output ? this.output : this.error;
  }
}

/** Room for what arrives of all commands of a connection before anybody takes it. */
export class SharedRoom implements UnreadRoom {
  readonly #failure: () => Error;
  #left: number;

  constructor(bytes: number, failure: () => Error) {
    this.#left = bytes;
    this.#failure = failure;
  }

  take(bytes: number): Error | undefined {
    if (bytes > this.#left) return this.#failure();
    this.#left -= bytes;
    return undefined;
  }

  give(bytes: number): void {
    this.#left += bytes;
  }
}
