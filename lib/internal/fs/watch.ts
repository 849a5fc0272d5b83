// Watching files of the guest: `watch`.

import type { FileChangeInfo } from 'node:fs/promises';
import { posix } from 'node:path';

import { AbortError } from '../../errors.js';
import type { FileWatcher, GuestPath } from '../../guest-fs-options.js';
import type { Operation } from '../agent/connection.js';
import type { StreamSink } from '../agent/streams.js';
import { Deferred } from '../base/deferred.js';
import { type Observation, observe } from '../base/diagnostics.js';
import {
  encodeWatch,
  ProtocolError,
  WatchDecoder,
  WatchEvent,
  type WatchRecord,
} from '../protocol/protocol.js';
import type { Guest } from '../vm/guest.js';
import { limitError, releaseLimit } from './limit.js';
import type { CheckedWatch } from './options.js';
import { pathText } from './paths.js';
import { brokenReply, failureOf, textOrBytes } from './request.js';

/** What the guest may send before the caller has taken what came before, in bytes. */
const WATCH_WINDOW_BYTES = 16 * 1024;

type Change = FileChangeInfo<string | Buffer>;
type Result = IteratorResult<Change, undefined>;

const OVER: IteratorReturnResult<undefined> = { done: true, value: undefined };

/** The base name of a path, in bytes. */
function baseName(path: GuestPath): Buffer {
  return Buffer.from(posix.basename(Buffer.from(path as string).toString('latin1')), 'latin1');
}

/**
 * Changes of files as they come. What nobody takes waits in the guest, except for a window.
 *
 * Lifetime: from the call until the caller leaves the loop, the signal, or the end of what is
 * watched or of the VM.
 */
export class Watcher implements FileWatcher<string | Buffer>, StreamSink {
  readonly #guest: Guest;
  readonly #path: GuestPath;
  readonly #encoding: BufferEncoding | 'buffer';
  readonly #ignoreOverflow: boolean;
  readonly #signal: AbortSignal | undefined;
  readonly #observation: Observation;
  readonly #decoder = new WatchDecoder();
  readonly #ready = new Deferred<void>();
  readonly #closed = new Deferred<void>();
  readonly #onAbort = (): void => {
    this.#changes = [];
    const signal = this.#signal;
    if (signal !== undefined) this.#stop(() => limitError(signal));
  };
  #operation: Operation | undefined;
  #waiting: Deferred<Result>[] = [];
  #changes: Change[] = [];
  #count = 0;
  /** Why there will be no more changes; `null` where that is no error */
  #end: (() => Error) | null | undefined;
  /** The guest has let go, and the caller may know the end */
  #over = false;

  constructor(guest: Guest, path: GuestPath, options: CheckedWatch) {
    const { encoding, recursive, overflow, signal } = options;
    this.#guest = guest;
    this.#path = path;
    this.#encoding = encoding;
    this.#ignoreOverflow = overflow === 'ignore';
    this.#signal = signal;
    this.#observation = observe('fs', guest, 'watch', () => ({ path: pathText(path), recursive }));
    if (signal?.aborted) {
      this.#onAbort();
    } else {
      this.#begin(recursive);
      signal?.addEventListener('abort', this.#onAbort, { once: true });
    }
  }

  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  #begin(recursive: boolean): void {
    const operation = this.#guest.agent.begin('other', ({ id, output }) =>
      encodeWatch(id, this.#path, { outputLimit: output.takeInitialLimit(), recursive }),
    );
    this.#operation = operation;
    operation.output.attach(this);
    operation.output.grant(WATCH_WINDOW_BYTES);
    operation.reply.then(
      ({ errno }) => this.#onReply(errno),
      (error: Error) => this.#conclude(() => error),
    );
  }

  #onReply(errno: number): void {
    const call = { method: 'watch', path: this.#path };
    this.#conclude(errno === 0 ? null : () => this.#named(failureOf(call, errno)));
  }

  /** node:fs's errors of watchers have the path under this name as well. */
  #named(error: NodeJS.ErrnoException): Error {
    return Object.assign(error, { filename: pathText(this.#path) });
  }

  // From the guest.

  onData(chunk: Buffer): void {
    if (this.#end !== undefined) return;
    try {
      for (const record of this.#decoder.push(chunk)) this.#take(record);
    } catch (cause) {
      if (!(cause instanceof ProtocolError)) throw cause;
      this.#stop(() => brokenReply(`a broken watch: ${cause.message}`, cause));
    }
    this.#grantMore();
  }

  onEnd(): void {}

  onError(): void {}

  #take({ type, name }: WatchRecord): void {
    if (this.#end !== undefined) return;
    if (type === WatchEvent.ready) {
      this.#ready.resolve();
    } else if (type === WatchEvent.overflow) {
      if (!this.#ignoreOverflow) this.#stop(() => this.#overflow());
    } else {
      const eventType = type === WatchEvent.rename ? 'rename' : 'change';
      const path = name.length === 0 ? baseName(this.#path) : Buffer.from(name);
      this.#offer({ eventType, filename: textOrBytes(path, this.#encoding) });
    }
  }

  #overflow(): Error {
    const text = `Changes of '${pathText(this.#path)}' were lost: they came faster than they were taken`;
    return Object.assign(new Error(text), { code: 'ERR_FS_WATCH_QUEUE_OVERFLOW' });
  }

  #offer(change: Change): void {
    this.#count++;
    const next = this.#waiting.shift();
    if (next === undefined) this.#changes.push(change);
    else next.resolve({ done: false, value: change });
  }

  #grantMore(): void {
    if (this.#changes.length === 0) this.#operation?.output.grant(WATCH_WINDOW_BYTES);
  }

  // The end.

  /** Ends the watch from this side. */
  #stop(reason: (() => Error) | null): void {
    if (this.#end !== undefined) return;
    this.#end = reason;
    if (this.#operation === undefined) this.#conclude(reason);
    else this.#operation.cancel();
  }

  /** The guest has let go. */
  #conclude(reason: (() => Error) | null): void {
    if (this.#end === undefined) this.#end = reason;
    this.#over = true;
    this.#signal?.removeEventListener('abort', this.#onAbort);
    releaseLimit(this.#signal);
    const end = this.#end;
    if (end === null) this.#observation.succeed({ changes: this.#count });
    else this.#observation.fail(end());
    this.#ready.reject(end?.() ?? new AbortError('The watch was ended before it was ready'));
    this.#closed.resolve();
    for (const next of this.#waiting.splice(0)) this.#settle(next);
  }

  /** Tells the end: an error once, and after that nothing but the end. */
  #settle(next: Deferred<Result>): void {
    const end = this.#end;
    this.#end = null;
    if (end) next.reject(end());
    else next.resolve(OVER);
  }

  // For the caller.

  next(): Promise<Result> {
    const value = this.#changes.shift();
    if (value !== undefined) {
      this.#grantMore();
      return Promise.resolve({ done: false, value });
    }
    const next = new Deferred<Result>();
    if (this.#over) this.#settle(next);
    else this.#waiting.push(next);
    return next.promise;
  }

  async return(): Promise<Result> {
    this.#changes = [];
    this.#stop(null);
    await this.#closed.promise;
    return OVER;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
