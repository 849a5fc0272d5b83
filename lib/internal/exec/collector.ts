import type { IncomingStream, StreamSink } from '../agent/streams.js';

/** Window while everything is wanted, in bytes. */
const COLLECT_WINDOW_BYTES = 1024 * 1024;

const FIRST_CAPACITY_BYTES = 1024;

/**
 * Collects a stream into one buffer of at most `maxBytes`.
 *
 * Chunks are copied together as they arrive, since a guest that sends single bytes would otherwise
 * make each of them cost an object.
 */
export class Collector implements StreamSink {
  readonly #stream: IncomingStream;
  readonly #maxBytes: number;
  readonly #onOverflow: () => void;
  #buffer = Buffer.alloc(0);
  #length = 0;
  #stopped = false;
  /** Offset in the stream at which collecting stops */
  readonly #end: number;

  /** `onOverflow` is called once, with the first byte beyond `maxBytes`. */
  constructor(stream: IncomingStream, maxBytes: number, onOverflow: () => void) {
    this.#stream = stream;
    this.#maxBytes = maxBytes;
    this.#onOverflow = onOverflow;
    // The guest may send one byte too many, so that too much can be told from just enough.
    this.#end = stream.position + maxBytes + 1;
    stream.attach(this);
    this.#grant();
  }

  /** What has arrived so far. Valid until more arrives. */
  get bytes(): Buffer {
    return this.#buffer.subarray(0, this.#length);
  }

  /** Whether more than `maxBytes` arrived. */
  get overflowed(): boolean {
    return this.#stopped;
  }

  onData(chunk: Buffer): void {
    if (this.#stopped) return;
    const kept = Math.min(chunk.length, this.#maxBytes - this.#length);
    this.#reserve(this.#length + kept);
    chunk.copy(this.#buffer, this.#length, 0, kept);
    this.#length += kept;
    if (kept < chunk.length) {
      this.#stopped = true;
      this.#onOverflow();
      return;
    }
    this.#grant();
  }

  onEnd(): void {}

  onError(): void {}

  #grant(): void {
    this.#stream.grant(COLLECT_WINDOW_BYTES, this.#end);
  }

  #reserve(bytes: number): void {
    if (bytes <= this.#buffer.length) return;
    let capacity = Math.max(FIRST_CAPACITY_BYTES, this.#buffer.length);
    while (capacity < bytes) capacity *= 2;
    const larger = Buffer.allocUnsafeSlow(Math.min(capacity, this.#maxBytes));
    this.#buffer.copy(larger, 0, 0, this.#length);
    this.#buffer = larger;
  }
}
