import type { Wait } from './wait.js';

/** Runs one task at a time, in the order of asking. */
export class Turns {
  #last: Promise<void> = Promise.resolve();

  /** Runs the task in its turn; not at all if `wait` is cut before that. */
  async run<T>(task: () => Promise<T>, wait?: Wait): Promise<T> {
    const before = this.#last;
    let end!: () => void;
    this.#last = new Promise((resolve) => {
      end = resolve;
    });
    try {
      await (wait === undefined ? before : wait.race(before));
    } catch (error) {
      // Those behind still have to wait for those before.
      before.then(end);
      throw error;
    }
    try {
      return await task();
    } finally {
      end();
    }
  }
}
