// Node streams over the streams of an operation.

import { Readable, Writable } from 'node:stream';

import type { IncomingStream, OutgoingStream, StreamSink } from './streams.js';

/** Default `highWaterMark` of a command's streams, in bytes; the guest's window follows it. */
const STREAM_WINDOW_BYTES = 64 * 1024;

/** Window while output that nobody wants any more is thrown away, in bytes. */
const DISCARD_WINDOW_BYTES = 256 * 1024;

function ignore(): void {}

/** Calls a caller's code; what it throws is its own uncaught exception and stops nothing here. */
export function isolate(call: () => void): void {
  try {
    call();
  } catch (error) {
    process.nextTick(() => {
      throw error;
    });
  }
}

/** Hands on a chunk that arrived. */
export function pushOwned(stream: Readable, chunk: Buffer): void {
  // A short view must not keep the whole batch alive that it came with.
  const owned = chunk.length * 2 < chunk.buffer.byteLength ? Buffer.from(chunk) : chunk;
  isolate(() => stream.push(owned));
}

/**
 * Output of a command. Bytes cross into the host only as they are read; destroying the stream
 * makes the rest of the output vanish, and the command goes on.
 */
export class GuestReadable extends Readable implements StreamSink {
  readonly #stream: IncomingStream;

  constructor(stream: IncomingStream) {
    super({ highWaterMark: STREAM_WINDOW_BYTES });
    this.#stream = stream;
    // A guest that dies must not end the process of whoever reads without an error handler.
    this.on('error', ignore);
    stream.attach(this);
  }

  override _read(): void {
    this.#stream.grant(this.readableHighWaterMark);
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#stream.grant(DISCARD_WINDOW_BYTES);
    callback(error);
  }

  onData(chunk: Buffer): void {
    if (this.destroyed) {
      this.#stream.grant(DISCARD_WINDOW_BYTES);
      return;
    }
    pushOwned(this, chunk);
  }

  onEnd(): void {
    isolate(() => this.push(null));
  }

  onError(error: Error): void {
    this.destroy(error);
  }
}

/** Standard input of a command. A write is done when the guest has room for all of it. */
export class GuestWritable extends Writable {
  readonly #stream: OutgoingStream;

  constructor(stream: OutgoingStream) {
    super({ highWaterMark: STREAM_WINDOW_BYTES });
    this.#stream = stream;
    // A command that exits without reading its input must not end the process either.
    this.on('error', ignore);
  }

  override _write(
    chunk: Buffer,
    _encoding: BufferEncoding,
    callback: (error?: Error | null) => void,
  ): void {
    this.#stream.write(chunk, callback);
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#stream.end();
    callback();
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#stream.end();
    callback(error);
  }
}
