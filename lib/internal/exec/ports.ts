// The three ends of a command's streams in the host: who takes its output, what feeds its input.

import { finished, type Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { GuestReadable, GuestWritable } from '../agent/guest-streams.js';
import type { IncomingStream, OutgoingStream } from '../agent/streams.js';
import { Collector } from './collector.js';
import type { OutputOption, StdinOption } from './options.js';

/** Whether a caller's stream is one of the process's own, which nobody but Node may end. */
function isProcessStream(stream: Writable): boolean {
  return stream === process.stdout || stream === process.stderr;
}

/** Standard output or standard error of one command. */
export class OutputPort {
  readonly #name: 'stdout' | 'stderr';
  readonly #option: OutputOption;
  readonly #stream: IncomingStream;
  readonly #maxBytes: number;
  readonly #onOverflow: () => void;
  #taken: GuestReadable | undefined;
  #collector: Collector | undefined;
  #forwarded: Promise<void> | undefined;

  constructor(
    name: 'stdout' | 'stderr',
    option: OutputOption,
    stream: IncomingStream,
    maxBytes: number,
    onOverflow: () => void,
  ) {
    this.#name = name;
    this.#option = option;
    this.#stream = stream;
    this.#maxBytes = maxBytes;
    this.#onOverflow = onOverflow;
  }

  /** Whether the guest connects this stream at all. */
  get connected(): boolean {
    return this.#option !== 'ignore' && this.#option !== 'terminal';
  }

  /** The caller's stream that output goes to, if one was given. */
  get target(): Writable | undefined {
    return typeof this.#option === 'string' ? undefined : this.#option;
  }

  /** Starts copying to the caller's stream; `onError` hears of its failure. */
  forward(onError: (error: Error) => void): void {
    const target = this.target;
    if (target === undefined) return;
    const source = new GuestReadable(this.#stream);
    this.#forwarded = pipeline(source, target, { end: false }).catch((error: Error) => {
      // The command's own failure is reported by the command.
      if (this.#stream.failed) return;
      onError(error);
      throw error;
    });
    this.#forwarded.catch(() => {});
  }

  /** Gives the output to the caller as a stream, who then has to read it. */
  take(): Readable {
    if (this.#taken !== undefined) return this.#taken;
    if (this.#option === 'terminal') {
      throw new TypeError(
        `${this.#name} is empty: the command has a terminal, and all that it shows is in stdout`,
      );
    }
    if (this.#option !== 'pipe') {
      throw new TypeError(
        `${this.#name} is not a pipe: the option "${this.#name}" sent it elsewhere`,
      );
    }
    if (this.#collector !== undefined) {
      throw new TypeError(
        `${this.#name} is being collected, since the command was awaited; take it before that`,
      );
    }
    this.#taken = new GuestReadable(this.#stream);
    return this.#taken;
  }

  /** Starts collecting, unless the output goes elsewhere. */
  collect(): void {
    if (this.#option !== 'pipe' || this.#taken !== undefined) return;
    this.#collector ??= new Collector(this.#stream, this.#maxBytes, this.#onOverflow);
  }

  /** What was collected so far. */
  get bytes(): Buffer {
    return this.#collector?.bytes ?? Buffer.alloc(0);
  }

  /** Resolves when everything has been handed to the caller's stream; rejects with its failure. */
  async flushed(): Promise<void> {
    await this.#forwarded;
  }
}

/**
 * Ends the caller's streams behind a command that is over. Waits until they have finished, but not
 * behind a failure: a reader that has stopped must not hold that back.
 */
export async function closeTargets(ports: readonly OutputPort[], failed: boolean): Promise<void> {
  const targets = new Set(ports.flatMap((port) => port.target ?? []));
  await Promise.all(
    [...targets].map(async (target) => {
      if (isProcessStream(target) || target.destroyed) return;
      if (failed) {
        target.end();
        return;
      }
      await new Promise<void>((resolve, reject) => {
        finished(target, { readable: false }, (error) => (error ? reject(error) : resolve()));
        target.end();
      });
    }),
  );
}

/** Standard input of one command. */
export class InputPort {
  readonly #option: StdinOption;
  readonly #stream: OutgoingStream;
  #taken: GuestWritable | undefined;
  #source: Readable | undefined;
  #stopWatching: (() => void) | undefined;
  #ended = false;
  #connected = false;

  constructor(option: StdinOption, stream: OutgoingStream) {
    this.#option = option;
    this.#stream = stream;
  }

  /** The request leaves: whether the guest connects this stream. */
  connect(): boolean {
    // End of file at once is what /dev/null gives, and it costs the guest less than a pipe.
    this.#connected = this.#option !== 'ignore' && !this.#ended;
    if (!this.#connected) this.#stream.close();
    return this.#connected;
  }

  /** Starts feeding what the option gave; `onError` hears of the source's failure. */
  feed(onError: (error: Error) => void): void {
    const input = this.#option;
    if (typeof input === 'string') return;
    if (input instanceof Uint8Array) {
      if (input.length > 0) this.#stream.write(input, () => {});
      this.#stream.end();
      return;
    }
    const sink = new GuestWritable(this.#stream);
    this.#taken = sink;
    this.#source = input;
    this.#stopWatching = finished(input, { writable: false }, (error) => {
      if (error) onError(error);
    });
    input.pipe(sink);
  }

  /** Gives the input to the caller as a stream, who then has to end it. */
  take(): Writable {
    if (this.#option !== 'pipe') {
      throw new TypeError('stdin is not a pipe: the option "stdin" feeds it');
    }
    if (this.#taken === undefined) {
      this.#taken = new GuestWritable(this.#stream);
      if (this.#ended) this.#taken.end();
    }
    return this.#taken;
  }

  /** The caller awaits the command and will not write: end of file. */
  endUntaken(): void {
    if (this.#option !== 'pipe' || this.#taken !== undefined || this.#ended) return;
    this.#ended = true;
    if (this.#connected) this.#stream.end();
  }

  /** The command is over: lets go of the source without ending or destroying it. */
  release(): void {
    this.#stopWatching?.();
    if (this.#source !== undefined && this.#taken !== undefined) {
      this.#source.unpipe(this.#taken);
    }
    this.#taken?.destroy();
  }
}
