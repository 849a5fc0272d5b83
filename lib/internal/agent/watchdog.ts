/** Intervals that may pass without an answer. */
const MAX_MISSED_PINGS = 3;

export interface WatchdogTarget {
  /** Whether nothing can be asked now. */
  isHeldBack(): boolean;
  /** Whether a ping is on its way. */
  isPinging(): boolean;
  ping(): void;
  onSilence(seconds: number): void;
}

/**
 * Asks an agent at intervals whether it is there, while somebody waits for it.
 *
 * Counts intervals rather than time: a process that was stopped for a minute wakes up to expired
 * timers and unread answers alike.
 */
export class Watchdog {
  readonly #target: WatchdogTarget;
  readonly #intervalMs: number;
  #timer: NodeJS.Timeout | undefined;
  #missed = 0;

  constructor(target: WatchdogTarget, intervalMs: number) {
    this.#target = target;
    this.#intervalMs = intervalMs;
  }

  /** Does nothing while it runs: whoever asks again and again must not keep it from counting. */
  start(): void {
    if (this.#timer !== undefined) return;
    this.#missed = 0;
    this.#timer = setInterval(() => this.#tick(), this.#intervalMs).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** The agent has said something. */
  answered(): void {
    this.#missed = 0;
  }

  #tick(): void {
    if (this.#target.isHeldBack()) {
      this.#missed = 0;
      return;
    }
    if (!this.#target.isPinging()) {
      this.#target.ping();
      return;
    }
    if (++this.#missed < MAX_MISSED_PINGS) return;
    this.#missed = 0;
    this.#target.onSilence((MAX_MISSED_PINGS * this.#intervalMs) / 1000);
  }
}
