// Somebody in front of the terminal of a command: types, and waits for what it shows.

import type { Readable, Writable } from 'node:stream';

export class Dialogue {
  readonly #stdin: Writable;
  /** What was shown and nobody has waited for yet */
  #fresh = '';
  #all = '';
  #over = false;
  readonly #waiters: (() => void)[] = [];

  constructor({ stdin, stdout }: { stdin: Writable; stdout: Readable }) {
    this.#stdin = stdin;
    stdin.on('error', () => {});
    stdout.on('data', (chunk: Buffer) => {
      this.#fresh += chunk.toString('latin1');
      this.#all += chunk.toString('latin1');
      this.#wake();
    });
    stdout.on('close', () => {
      this.#over = true;
      this.#wake();
    });
  }

  #wake(): void {
    for (const wake of this.#waiters.splice(0)) wake();
  }

  /** Everything that was shown. */
  get screen(): string {
    return this.#all;
  }

  type(text: string): void {
    this.#stdin.write(text);
  }

  /** Resolves when that has been shown, behind what was waited for before; returns the match. */
  async shows(pattern: RegExp | string): Promise<RegExpExecArray> {
    const expression = typeof pattern === 'string' ? new RegExp(escapeText(pattern)) : pattern;
    for (;;) {
      const match = expression.exec(this.#fresh);
      if (match !== null) {
        this.#fresh = this.#fresh.slice(match.index + match[0].length);
        return match;
      }
      if (this.#over) throw new Error(`${expression} was not shown, but: ${this.#all}`);
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }
}

/** Of a regular expression that matches exactly that. */
function escapeText(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}
