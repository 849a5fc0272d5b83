// The terminal that somebody sits at. It is raw while a program in the guest has it: what is typed
// goes there as it is, ^C included.

import type { TerminalSize } from '../exec.js';
import { UsageError } from './exit-codes.js';

/** Of a terminal that does not say. */
const UNKNOWN_SIZE: TerminalSize = { columns: 80, rows: 24 };

export class UserTerminal {
  /** Knows the terminal's size, which standard input does not */
  readonly #shown = [process.stdout, process.stderr].find(({ isTTY }) => isTTY);
  #isTaken = false;
  readonly #restore = (): void => this.#setRaw(false);
  readonly #resized: () => void;
  readonly #continued = (): void => {
    // Whoever had the terminal meanwhile has left it in a mode of their own.
    this.#setRaw(false);
    this.#setRaw(true);
  };

  /** @throws {UsageError} standard input is no terminal. */
  constructor(onResize: (size: TerminalSize) => void) {
    if (!process.stdin.isTTY) {
      throw new UsageError(
        "Standard input is not a terminal; 'forklet run' is for commands without one",
      );
    }
    this.#resized = () => onResize(this.size);
  }

  get size(): TerminalSize {
    const [columns, rows] = this.#shown?.getWindowSize() ?? [0, 0];
    return columns > 0 && rows > 0 ? { columns, rows } : UNKNOWN_SIZE;
  }

  /** Gives the terminal to the guest, until {@link release}, or until this process ends. */
  take(): void {
    this.#isTaken = true;
    // An uncaught error ends the process by this as well.
    process.on('exit', this.#restore);
    this.#shown?.on('resize', this.#resized);
    process.on('SIGCONT', this.#continued);
    this.#setRaw(true);
  }

  release(): void {
    if (!this.#isTaken) return;
    this.#isTaken = false;
    this.#setRaw(false);
    process.off('exit', this.#restore);
    this.#shown?.off('resize', this.#resized);
    process.off('SIGCONT', this.#continued);
    process.stdin.pause();
  }

  #setRaw(raw: boolean): void {
    try {
      process.stdin.setRawMode(raw);
    } catch {
      // The terminal is gone.
    }
  }
}
