// The byte streams of one operation. Offsets are absolute and a sender stays inside the limit that
// the receiver granted, so a reader that stops stalls its own stream and nothing else.

import {
  encodeData,
  encodeEnd,
  encodeWindow,
  MAX_PAYLOAD_BYTES,
  type OutputStream,
  ProtocolError,
} from './protocol.js';

/** Sends frames of streams when the connection has room; see `AgentConnection`. */
export interface StreamScheduler {
  /** Calls `stream.nextFrame()` until it returns nothing, as soon as there is room. */
  schedule(stream: ScheduledStream): void;
}

export interface ScheduledStream {
  /** Returns one frame that is due, or `undefined` when there is none. */
  nextFrame(): Buffer | undefined;
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

  constructor(id: number, stream: OutputStream, scheduler: StreamScheduler) {
    this.#id = id;
    this.#stream = stream;
    this.#scheduler = scheduler;
  }

  /** Bytes received so far. */
  get received(): number {
    return this.#received;
  }

  /** Whether the operation failed before the stream ended. */
  get failed(): boolean {
    return this.#over instanceof Error;
  }

  /** Connects the one sink; it is told at once if the stream is over already. */
  attach(sink: StreamSink): void {
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
    this.#sink?.onData(bytes);
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
