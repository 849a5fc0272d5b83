// The bytes of a tree that comes from a guest.

import type { IncomingStream, StreamSink } from '../agent/streams.js';

/** What the guest may be ahead of the disk, in bytes. */
const WINDOW_BYTES = 512 * 1024;

/** The stream is over, and the tree is not: the reply says why. */
export class TreeCutOff extends Error {}

/**
 * Waits for what is asked of it, and grants the guest more when that has been dealt with. It keeps
 * one window of bytes, however small the pieces are in which they come.
 */
export class TreeInput implements StreamSink {
  readonly #stream: IncomingStream;
  /** A ring: #held bytes from #start on, around its end */
  readonly #bytes = Buffer.allocUnsafeSlow(WINDOW_BYTES);
  #start = 0;
  #held = 0;
  #over: Error | undefined;
  #stopped: Error | undefined;
  #wake: (() => void) | undefined;

  constructor(stream: IncomingStream) {
    this.#stream = stream;
    stream.attach(this);
    stream.grant(WINDOW_BYTES);
  }

  onData(chunk: Buffer): void {
    if (this.#stopped !== undefined) return;
    const at = (this.#start + this.#held) % WINDOW_BYTES;
    const first = Math.min(chunk.length, WINDOW_BYTES - at);
    chunk.copy(this.#bytes, at, 0, first);
    chunk.copy(this.#bytes, 0, first);
    this.#held += chunk.length;
    this.#wake?.();
  }

  onEnd(): void {
    this.#finish(new TreeCutOff('The tree is not complete'));
  }

  onError(error: Error): void {
    this.#finish(error);
  }

  #finish(error: Error): void {
    this.#over ??= error;
    this.#wake?.();
  }

  /** Whoever waits for bytes, or asks for some later, gets this error. */
  stop(error: Error): void {
    this.#stopped ??= error;
    this.#wake?.();
  }

  /** Waits for the end; `false` when more bytes come instead. */
  async ended(): Promise<boolean> {
    while (this.#held === 0 && this.#over === undefined) await this.#change();
    if (this.#over instanceof TreeCutOff) return this.#held === 0;
    if (this.#over !== undefined) throw this.#over;
    return false;
  }

  /** Takes so many bytes, less than a window. */
  async take(count: number): Promise<Buffer> {
    await this.#need(count);
    const taken = Buffer.allocUnsafe(count);
    const first = Math.min(count, WINDOW_BYTES - this.#start);
    this.#bytes.copy(taken, 0, this.#start, this.#start + first);
    this.#bytes.copy(taken, first, 0, count - first);
    this.release(count);
    return taken;
  }

  /** Looks at the next bytes, at least one and at most so many, until they are released. */
  async look(most: number): Promise<Buffer> {
    await this.#need(1);
    const count = Math.min(most, this.#held, WINDOW_BYTES - this.#start);
    return this.#bytes.subarray(this.#start, this.#start + count);
  }

  /** So many bytes are dealt with. */
  release(count: number): void {
    this.#start = (this.#start + count) % WINDOW_BYTES;
    this.#held -= count;
    this.#stream.grant(WINDOW_BYTES - this.#held);
  }

  async #need(count: number): Promise<void> {
    for (;;) {
      if (this.#stopped !== undefined) throw this.#stopped;
      if (this.#held >= count) return;
      if (this.#over !== undefined) throw this.#over;
      await this.#change();
    }
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}
