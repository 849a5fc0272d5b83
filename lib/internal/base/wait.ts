import { AbortError } from '../../errors.js';

export interface WaitOptions {
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
  /** The error of the deadline. */
  readonly onTimeout?: (timeoutMs: number) => Error;
  /** Called by `end()`. */
  readonly onEnd?: (wait: Wait) => void;
}

/**
 * A caller's wait, which a deadline, an abort or the end of what is waited for cuts short.
 *
 * Errors are made where they are thrown, so that their stacks have the caller's.
 */
export class Wait {
  #reason: (() => Error) | undefined;
  #listeners: (() => void)[] = [];
  readonly #timer: NodeJS.Timeout | undefined;
  readonly #signal: AbortSignal | undefined;
  readonly #onEnd: WaitOptions['onEnd'];
  readonly #onAbort = (): void => this.cut(() => new AbortError(this.#signal?.reason));

  constructor({ signal, timeoutMs, onTimeout, onEnd }: WaitOptions) {
    this.#signal = signal;
    this.#onEnd = onEnd;
    if (signal?.aborted === true) this.#onAbort();
    else signal?.addEventListener('abort', this.#onAbort, { once: true });
    if (timeoutMs !== undefined && onTimeout !== undefined) {
      this.#timer = setTimeout(() => this.cut(() => onTimeout(timeoutMs)), timeoutMs).unref();
    }
  }

  get isCut(): boolean {
    return this.#reason !== undefined;
  }

  /** Ends the wait with an error; only the first reason counts. */
  cut(reason: () => Error): void {
    if (this.#reason !== undefined) return;
    this.#reason = reason;
    for (const listener of this.#listeners.splice(0)) listener();
  }

  /** Calls back when the wait is cut, or at once if it has been. */
  onCut(listener: () => void): void {
    if (this.isCut) listener();
    else this.#listeners.push(listener);
  }

  /** Throws the reason if the wait has been cut. */
  check(): void {
    if (this.#reason !== undefined) throw this.#reason();
  }

  /** What the promise comes to, or the reason of the cut if that is earlier. */
  async race<T>(promise: Promise<T>): Promise<T> {
    const outcome = await new Promise<{ readonly value: T } | undefined>((resolve, reject) => {
      promise.then((value) => resolve({ value }), reject);
      this.onCut(() => resolve(undefined));
    });
    if (outcome === undefined) throw (this.#reason as () => Error)();
    return outcome.value;
  }

  /** Lets go of timer and signal. */
  end(): void {
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener('abort', this.#onAbort);
    this.#listeners = [];
    this.#onEnd?.(this);
  }
}
