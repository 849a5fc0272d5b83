// A TCP connection to a port of the guest, as a stream.

import { Duplex } from 'node:stream';

import { connectionError } from '../../errors.js';
import type { Operation } from '../agent/connection.js';
import { isolate, pushOwned } from '../agent/guest-streams.js';
import type { StreamSink } from '../agent/streams.js';
import type { Observation } from '../base/diagnostics.js';
import { Cancel } from '../protocol/protocol.js';
import type { CheckedConnect } from './options.js';

type Callback = (error?: Error | null) => void;

/** How long the guest may take to read what was sent to it before this end was done. */
const LINGER_MS = 30_000;

/** Chunks below this are put together while nobody takes them: each costs more than its bytes. */
const SMALL_CHUNK_BYTES = 1024;
const GATHERED_BYTES = 4096;

/**
 * Both directions of a connection. Behaves as a `net.Socket`, except that an error without a
 * listener is no uncaught exception: a guest must not end the process by it.
 *
 * Lifetime: from the connection until both directions have ended, or one has failed.
 */
export class GuestConnection extends Duplex implements StreamSink {
  readonly #operation: Operation;
  /** Knows the VM, which is so kept from being collected while it is connected */
  readonly #observation: Observation;
  /** Resolves when the operation is over, with what went wrong. */
  readonly #fate: Promise<Error | undefined>;
  /** Small chunks behind those in the stream's own buffer, which is not empty then */
  #gathered: Buffer | undefined;
  #gatheredBytes = 0;
  #bytesRead = 0;
  #bytesWritten = 0;

  constructor(
    operation: Operation,
    observation: Observation,
    { highWaterMark, allowHalfOpen }: CheckedConnect,
  ) {
    super({ highWaterMark, allowHalfOpen });
    this.#operation = operation;
    this.#observation = observation;
    this.on('error', () => {});
    this.#fate = this.#follow();
    // In a turn of its own, when the caller has the stream and its listeners are there: what has
    // come with the connection waits so long.
    setImmediate(() => operation.output.attach(this));
  }

  async #follow(): Promise<Error | undefined> {
    let failure: Error | undefined;
    try {
      const { errno } = await this.#operation.reply;
      if (errno !== 0) failure = connectionError(errno);
    } catch (error) {
      failure = error as Error;
    }
    setImmediate(() => {
      if (failure !== undefined) this.destroy(failure);
      // A guest that has ended the connection has ended what it sends.
      else this.#pushEnd();
    });
    return failure;
  }

  #pushEnd(): void {
    if (this.destroyed || this.readableEnded) return;
    this.#pushGathered();
    isolate(() => this.push(null));
  }

  #pushGathered(): void {
    if (this.#gathered === undefined) return;
    const chunk = this.#gathered.subarray(0, this.#gatheredBytes);
    this.#gathered = undefined;
    this.#gatheredBytes = 0;
    pushOwned(this, chunk);
  }

  override read(size?: number): unknown {
    this.#pushGathered();
    return super.read(size);
  }

  override _read(): void {
    this.#operation.output.grant(this.readableHighWaterMark);
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: Callback): void {
    this.#operation.input.write(chunk, (error) => {
      if (!error) {
        this.#bytesWritten += chunk.length;
        callback();
        return;
      }
      // The guest takes no more, and its reply says why.
      void this.#fate.then((failure) => callback(failure ?? error));
    });
  }

  override _final(callback: Callback): void {
    this.#operation.input.end();
    callback();
  }

  override _destroy(error: Error | null, callback: Callback): void {
    this.#letGo(error);
    if (error === null) {
      this.#observation.succeed({ bytesRead: this.#bytesRead, bytesWritten: this.#bytesWritten });
    } else {
      this.#observation.fail(error);
    }
    callback(error);
  }

  #letGo(error: Error | null): void {
    const operation = this.#operation;
    if (operation.over) return;
    if (error === null && this.writableFinished && this.readableEnded) {
      // Everything is on its way. A program that does not read it must not hold the connection.
      const timer = setTimeout(() => operation.cancel(Cancel.reset), LINGER_MS).unref();
      void this.#fate.then(() => clearTimeout(timer));
      return;
    }
    // The guest must not take for complete what is not.
    const lacks = error !== null || this.writableLength > 0;
    operation.cancel(lacks ? Cancel.reset : Cancel.close);
  }

  onData(chunk: Buffer): void {
    if (this.destroyed) return;
    this.#bytesRead += chunk.length;
    if (this.#gatheredBytes + chunk.length > GATHERED_BYTES) this.#pushGathered();
    // Whoever has not taken what is there asks for more before long: see read().
    if (this.readableLength > 0 && chunk.length < SMALL_CHUNK_BYTES) {
      this.#gathered ??= Buffer.allocUnsafe(GATHERED_BYTES);
      this.#gatheredBytes += chunk.copy(this.#gathered, this.#gatheredBytes);
      return;
    }
    this.#pushGathered();
    pushOwned(this, chunk);
  }

  onEnd(): void {
    // At the end of the operation, its reply says more.
    if (!this.#operation.over) this.#pushEnd();
  }

  onError(): void {}
}
