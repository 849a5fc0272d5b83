// The bytes of a tree that goes to a guest.

import type { OutgoingStream } from '../agent/streams.js';
import { TREE_RUN_BYTES, writeTreeRun } from '../protocol/protocol.js';

/** Put together before it is sent. A run may take all of it: the longer, the fewer the guest writes. */
const BATCH_BYTES = 256 * 1024;

/** A run is worth being read into what is left of a batch, in bytes. */
const SMALL_RUN_BYTES = 4096;

/** The guest takes no more, for which its reply has the reason. */
export class TreeRefused extends Error {}

/** Gathers entries and contents, and waits for the guest as it takes them. */
export class TreeOutput {
  readonly #stream: OutgoingStream;
  #batch = Buffer.allocUnsafeSlow(BATCH_BYTES);
  #used = 0;
  #stopped: Error | undefined;

  constructor(stream: OutgoingStream) {
    this.#stream = stream;
  }

  /** Whoever sends something later gets this error. */
  stop(error: Error): void {
    this.#stopped ??= error;
  }

  /** Throws that error. */
  check(): void {
    if (this.#stopped !== undefined) throw this.#stopped;
  }

  async put(bytes: Buffer): Promise<void> {
    this.check();
    if (this.#used + bytes.length > BATCH_BYTES) await this.#send();
    bytes.copy(this.#batch, this.#used);
    this.#used += bytes.length;
  }

  /**
   * Puts a run of at most so many bytes, which `read` fills; returns how many it has read. None is
   * put when there are none.
   */
  async putRun(
    offset: number,
    most: number,
    read: (into: Buffer, at: number, count: number) => Promise<number>,
  ): Promise<number> {
    const room = BATCH_BYTES - this.#used - TREE_RUN_BYTES;
    if (room < Math.min(most, SMALL_RUN_BYTES)) await this.#send();
    const at = this.#used + TREE_RUN_BYTES;
    const bytes = await read(this.#batch, at, Math.min(most, BATCH_BYTES - at));
    if (bytes === 0) return 0;
    writeTreeRun(this.#batch, this.#used, { offset, bytes });
    this.#used = at + bytes;
    return bytes;
  }

  /** Sends what is left, and says that nothing follows. */
  async end(): Promise<void> {
    await this.#send();
    this.#stream.end();
  }

  async #send(): Promise<void> {
    this.check();
    if (this.#used === 0) return;
    const batch = this.#batch.subarray(0, this.#used);
    this.#batch = Buffer.allocUnsafeSlow(BATCH_BYTES);
    this.#used = 0;
    await new Promise<void>((resolve, reject) => {
      this.#stream.write(batch, (error) => {
        if (!error) resolve();
        else reject(new TreeRefused('The guest takes no more', { cause: error }));
      });
    });
  }
}
