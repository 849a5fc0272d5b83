// Streams over files: `createReadStream` and `createWriteStream`.

import { Readable, Writable } from 'node:stream';

import type { GuestPath } from '../../guest-fs-options.js';
import type { Operation } from '../agent/connection.js';
import { pushOwned } from '../agent/guest-streams.js';
import type { StreamSink } from '../agent/streams.js';
import { type Observation, observe } from '../base/diagnostics.js';
import { encodeReadFile, encodeWriteFile } from '../protocol/protocol.js';
import type { Guest } from '../vm/guest.js';
import { readSyscall, writeSyscall } from './contents.js';
import { limitError, releaseLimit } from './limit.js';
import type { CheckedReadStream, CheckedWriteStream } from './options.js';
import { pathText } from './paths.js';
import { failureOf } from './request.js';

type Callback = (error?: Error | null) => void;

/** Cancels what is still under way, and calls back when the guest has let go. */
function letGo(operation: Operation | undefined, callback: () => void): void {
  if (operation === undefined || operation.over) {
    callback();
    return;
  }
  operation.cancel();
  operation.reply.then(callback, callback);
}

/** Destroys a stream as soon as its signal says so. */
function limit(stream: Readable | Writable, signal: AbortSignal | undefined): void {
  if (signal === undefined) return;
  const onAbort = (): void => {
    stream.destroy(limitError(signal));
  };
  stream.once('close', () => {
    signal.removeEventListener('abort', onAbort);
    releaseLimit(signal);
  });
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort, { once: true });
}

function conclude(observation: Observation, error: Error | null, bytes: number): void {
  if (error === null) observation.succeed({ bytes });
  else observation.fail(error);
}

/** Contents of a file. The guest reads only as far ahead as `highWaterMark`. */
export class FileReadable extends Readable implements StreamSink {
  /** Keeps the VM from being collected while it is read from. */
  readonly #guest: Guest;
  readonly #path: GuestPath;
  readonly #observation: Observation;
  readonly #operation: Operation | undefined;
  #bytes = 0;

  constructor(guest: Guest, path: GuestPath, options: CheckedReadStream) {
    const { start, byteCount, encoding, highWaterMark, signal } = options;
    super({ highWaterMark, ...(encoding !== null && { encoding }) });
    this.#guest = guest;
    this.#path = path;
    this.#observation = observe('fs', guest, 'createReadStream', () => ({
      path: pathText(path),
      start,
      byteCount,
    }));
    if (signal?.aborted !== true) this.#operation = this.#begin(options);
    limit(this, signal);
  }

  #begin({ start, byteCount }: CheckedReadStream): Operation {
    const operation = this.#guest.agent.begin('other', ({ id, output }) =>
      encodeReadFile(id, this.#path, {
        outputLimit: output.takeInitialLimit(),
        ...(start !== undefined && { start }),
        ...(byteCount !== undefined && { byteCount }),
      }),
    );
    operation.output.attach(this);
    operation.output.grant(this.readableHighWaterMark);
    operation.reply.then(
      ({ errno }) => this.#onReply(errno),
      (error: Error) => this.destroy(error),
    );
    return operation;
  }

  // The stream's own end says too little: on a failure it comes as well.
  #onReply(errno: number): void {
    if (this.destroyed) return;
    if (errno === 0) {
      this.push(null);
      return;
    }
    const call = { method: 'createReadStream', path: this.#path };
    this.destroy(failureOf(call, errno, readSyscall(errno)));
  }

  override _read(): void {
    this.#operation?.output.grant(this.readableHighWaterMark);
  }

  override _destroy(error: Error | null, callback: Callback): void {
    letGo(this.#operation, () => {
      conclude(this.#observation, error, this.#bytes);
      callback(error);
    });
  }

  onData(chunk: Buffer): void {
    if (this.destroyed) return;
    this.#bytes += chunk.length;
    pushOwned(this, chunk);
  }

  onEnd(): void {}

  onError(): void {}
}

/** Contents of a file to be written. Finished when the guest has written all of them. */
export class FileWritable extends Writable {
  readonly #guest: Guest;
  readonly #path: GuestPath;
  readonly #observation: Observation;
  readonly #operation: Operation | undefined;
  /** Resolves when the operation is over, with what went wrong. */
  readonly #fate: Promise<Error | undefined>;
  #bytes = 0;

  constructor(guest: Guest, path: GuestPath, options: CheckedWriteStream) {
    const { flags, mode, start, encoding, highWaterMark, signal } = options;
    super({ highWaterMark, defaultEncoding: encoding });
    this.#guest = guest;
    this.#path = path;
    this.#observation = observe('fs', guest, 'createWriteStream', () => ({
      path: pathText(path),
      flags,
      mode,
      start,
    }));
    if (signal?.aborted !== true) this.#operation = this.#begin(options);
    this.#fate = this.#follow();
    limit(this, signal);
  }

  #begin({ flags, mode, start }: CheckedWriteStream): Operation {
    return this.#guest.agent.begin('write', ({ id }) =>
      encodeWriteFile(id, this.#path, {
        append: flags.startsWith('a'),
        exclusive: flags.endsWith('x'),
        update: flags === 'r+',
        ...(mode !== undefined && { mode }),
        ...(start !== undefined && { start }),
      }),
    );
  }

  async #follow(): Promise<Error | undefined> {
    let failure: Error | undefined;
    try {
      const reply = await this.#operation?.reply;
      const call = { method: 'createWriteStream', path: this.#path };
      if (reply !== undefined && reply.errno !== 0) {
        failure = failureOf(call, reply.errno, writeSyscall(reply.errno));
      }
    } catch (error) {
      failure = error as Error;
    }
    // Also when nobody writes any more.
    if (failure !== undefined && !this.destroyed) this.destroy(failure);
    return failure;
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: Callback): void {
    this.#operation?.input.write(chunk, (error) => {
      if (!error) {
        this.#bytes += chunk.length;
        callback();
        return;
      }
      // The guest takes no more, and its reply says why.
      void this.#fate.then((failure) => callback(failure ?? error));
    });
  }

  override _final(callback: Callback): void {
    this.#operation?.input.end();
    void this.#fate.then(callback);
  }

  override _destroy(error: Error | null, callback: Callback): void {
    letGo(this.#operation, () => {
      conclude(this.#observation, error, this.#bytes);
      callback(error);
    });
  }
}
