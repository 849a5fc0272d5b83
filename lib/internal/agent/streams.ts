// The byte streams of one operation. Offsets are absolute and a sender stays inside the limit that
// the receiver granted, so a reader that stops stalls its own stream and nothing else.

import {
  encodeData,
  encodeEnd,
  encodeWindow,
  MAX_PAYLOAD_BYTES,
  type OutputStream,
  ProtocolError,
} from '../protocol/protocol.js';

/** What one Buffer costs besides its bytes, generously: a guest may send single ones. */
const CHUNK_COST_BYTES = 256;

/** Sends frames of streams when the connection has room; see `AgentConnection`. */
export interface StreamScheduler {
  /** Calls `stream.nextFrame()` until it returns nothing, as soon as there is room. */
  schedule(stream: ScheduledStream): void;
}

export interface ScheduledStream {
  /** Returns one frame that is due, or `undefined` when there is none. */
  nextFrame(): Buffer | undefined;
}

/** Where an {@link IncomingStream} stands that goes on in a fork. */
export interface IncomingState {
  /** Bytes that the host has received. */
  readonly received: number;
  /** Absolute offset up to which the guest may send. */
  readonly limit: number;
  readonly ended: boolean;
}

/** Where an {@link OutgoingStream} stands that goes on in a fork. */
export interface OutgoingState {
  /** Bytes that the guest has received. */
  readonly sent: number;
  /** Absolute offset up to which the host may send. */
  readonly limit: number;
  /** Whether the guest was told the end. */
  readonly ended: boolean;
}

/** Room for bytes that arrive before anybody takes them; see {@link IncomingStream.restore}. */
export interface UnreadRoom {
  /** Counts that many more, or says why they cannot be kept. */
  take(bytes: number): Error | undefined;
  give(bytes: number): void;
}

/** Who takes the bytes of an {@link IncomingStream}. */
export interface StreamSink {
  /** The sink owns the chunk. */
  onData(chunk: Buffer): void;
  /** No more bytes follow. */
  onEnd(): void;
  /** The operation failed before the stream ended. */
  onError(error: Error): void;
}

/**
 * Guest to host: output of a command, contents of a file.
 *
 * Bytes flow only as far as {@link grant} allowed; what the guest sends beyond is a protocol error.
 */
export class IncomingStream implements ScheduledStream {
  readonly #id: number;
  readonly #stream: OutputStream;
  readonly #scheduler: StreamScheduler;
  #sink: StreamSink | undefined;
  #limit = 0;
  #limitSent = 0;
  #received = 0;
  #over: 'ended' | Error | undefined;
  /** What came before there was a sink */
  #unread: Buffer[] = [];
  #unreadBytes = 0;
  #unreadCost = 0;
  #room: UnreadRoom | undefined;
  #lost: Error | undefined;

  constructor(id: number, stream: OutputStream, scheduler: StreamScheduler) {
    this.#id = id;
    this.#stream = stream;
    this.#scheduler = scheduler;
  }

  /**
   * Goes on where a stream of a frozen VM was. The guest may use the window that was granted there
   * before anybody takes this stream here: that waits in `room`.
   */
  restore({ received, limit, ended }: IncomingState, room: UnreadRoom): void {
    this.#received = received;
    this.#limit = limit;
    this.#limitSent = limit;
    this.#room = room;
    if (ended) this.#over = 'ended';
  }

  get state(): IncomingState {
    return {
      received: this.#received,
      limit: this.#limitSent,
      ended: this.#over === 'ended',
    };
  }

  /** Why bytes were thrown away before anybody took them. */
  get lost(): Error | undefined {
    return this.#lost;
  }

  /** Offset of the first byte that a sink attached now gets. */
  get position(): number {
    return this.#received - this.#unreadBytes;
  }

  /** Whether the operation failed before the stream ended. */
  get failed(): boolean {
    return this.#over instanceof Error;
  }

  /** Connects the one sink; it is told at once what came before it, and if the stream is over. */
  attach(sink: StreamSink): void {
    const unread = this.#unread;
    this.#room?.give(this.#unreadCost);
    this.#unread = [];
    this.#unreadBytes = 0;
    this.#unreadCost = 0;
    for (const chunk of unread) sink.onData(chunk);
    if (this.#lost !== undefined) {
      sink.onError(this.#lost);
      return;
    }
    this.#sink = sink;
    if (this.#over === 'ended') sink.onEnd();
    else if (this.#over !== undefined) sink.onError(this.#over);
  }

  /**
   * Lets the guest send until `windowBytes` beyond what has arrived, at most up to the absolute
   * offset `end`. Small steps are held back until they are worth a frame.
   */
  grant(windowBytes: number, end = Number.MAX_SAFE_INTEGER): void {
    if (this.#over !== undefined) return;
    const limit = Math.min(this.#received + windowBytes, end);
    if (limit <= this.#limit) return;
    const left = this.#limit - this.#received;
    if (left > windowBytes / 2) return;
    this.#limit = limit;
    this.#scheduler.schedule(this);
  }

  /** The limit that goes into the request itself, if nothing was sent yet. */
  takeInitialLimit(): number {
    this.#limitSent = this.#limit;
    return this.#limit;
  }

  nextFrame(): Buffer | undefined {
    if (this.#over !== undefined || this.#limitSent === this.#limit) return undefined;
    this.#limitSent = this.#limit;
    return encodeWindow(this.#id, this.#stream, this.#limit);
  }

  receive(offset: number, bytes: Buffer): void {
    this.#expectOffset(offset);
    if (this.#received + bytes.length > this.#limitSent) {
      throw new ProtocolError(`data of stream ${this.#stream} beyond its limit`);
    }
    this.#received += bytes.length;
    if (this.#sink !== undefined) this.#sink.onData(bytes);
    else this.#keep(bytes);
  }

  #keep(bytes: Buffer): void {
    if (this.#lost !== undefined) return;
    const cost = bytes.length + CHUNK_COST_BYTES;
    this.#lost = this.#room?.take(cost);
    if (this.#lost !== undefined) return;
    // A copy, since a view would keep the whole batch alive that it came with.
    this.#unread.push(Buffer.from(bytes));
    this.#unreadBytes += bytes.length;
    this.#unreadCost += cost;
  }

  end(offset: number): void {
    this.#expectOffset(offset);
    this.finish();
  }

  /** Ends the stream, whether or not the guest said so. */
  finish(): void {
    if (this.#over !== undefined) return;
    this.#over = 'ended';
    this.#sink?.onEnd();
  }

  fail(error: Error): void {
    if (this.#over !== undefined) return;
    this.#over = error;
    this.#sink?.onError(error);
  }

  #expectOffset(offset: number): void {
    if (this.#over !== undefined || offset !== this.#received) {
      throw new ProtocolError(
        `stream ${this.#stream} at offset ${offset} instead of ${this.#received}`,
      );
    }
  }
}

interface PendingWrite {
  readonly chunk: Uint8Array;
  readonly done: (error?: Error | null) => void;
}

/** Host to guest: stdin of a command, contents of a file to be written. */
export class OutgoingStream implements ScheduledStream {
  readonly #id: number;
  readonly #scheduler: StreamScheduler;
  readonly #pending: PendingWrite[] = [];
  /** Bytes of the first pending write that were sent */
  #taken = 0;
  #sent = 0;
  #limit: number;
  #state: 'open' | 'ending' | 'over' = 'open';
  #failure: Error | undefined;

  constructor(id: number, limit: number, scheduler: StreamScheduler) {
    this.#id = id;
    this.#limit = limit;
    this.#scheduler = scheduler;
  }

  /** Goes on where a stream of a frozen VM was. */
  restore({ sent, limit, ended }: OutgoingState): void {
    this.#sent = sent;
    this.#limit = limit;
    if (ended) this.#state = 'over';
  }

  get state(): OutgoingState {
    return { sent: this.#sent, limit: this.#limit, ended: this.#state === 'over' };
  }

  /** Sends a chunk; `done` is called when all of it is on its way, or cannot be any more. */
  write(chunk: Uint8Array, done: (error?: Error | null) => void): void {
    if (this.#state !== 'open') {
      done(this.#failure ?? brokenPipe());
      return;
    }
    this.#pending.push({ chunk, done });
    this.#scheduler.schedule(this);
  }

  /** Ends the stream behind what was written. */
  end(): void {
    if (this.#state !== 'open') return;
    this.#state = 'ending';
    this.#scheduler.schedule(this);
  }

  /** The guest granted more; limits never move back. */
  extend(limit: number): void {
    if (limit <= this.#limit) return;
    this.#limit = limit;
    if (this.#pending.length > 0) this.#scheduler.schedule(this);
  }

  nextFrame(): Buffer | undefined {
    let write = this.#pending[0];
    while (write !== undefined && this.#taken === write.chunk.length) {
      this.#pending.shift();
      this.#taken = 0;
      write.done();
      write = this.#pending[0];
    }
    if (write === undefined) {
      if (this.#state !== 'ending') return undefined;
      this.#state = 'over';
      return encodeEnd(this.#id, this.#sent);
    }
    const size = Math.min(
      write.chunk.length - this.#taken,
      this.#limit - this.#sent,
      MAX_PAYLOAD_BYTES,
    );
    if (size <= 0) return undefined;
    const frame = encodeData(
      this.#id,
      this.#sent,
      write.chunk.subarray(this.#taken, this.#taken + size),
    );
    this.#taken += size;
    this.#sent += size;
    return frame;
  }

  /** The operation is over: nothing can be sent any more. */
  close(failure?: Error): void {
    if (this.#state === 'over' && this.#pending.length === 0) return;
    this.#state = 'over';
    this.#failure = failure;
    for (const { done } of this.#pending.splice(0)) done(failure ?? brokenPipe());
  }
}

/** What a write to a pipe without a reader fails with. */
function brokenPipe(): NodeJS.ErrnoException {
  const error: NodeJS.ErrnoException = new Error('EPIPE: broken pipe, write');
  error.code = 'EPIPE';
  error.errno = -32;
  error.syscall = 'write';
  return error;
}
