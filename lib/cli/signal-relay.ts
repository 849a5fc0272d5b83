import type { ExecProcess } from '../exec.js';

/** Signals that ask a program to do something and are the command's to answer. */
const FORWARDED = [
  'SIGINT',
  'SIGTERM',
  'SIGHUP',
  'SIGQUIT',
  'SIGUSR2',
  'SIGWINCH',
  'SIGCONT',
] as const satisfies readonly NodeJS.Signals[];

/** Those of them that end what is under way before there is a command; the others say nothing then. */
const ENDING: ReadonlySet<NodeJS.Signals> = new Set(['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT']);

/** Takes signals from the terminal or the caller, for whoever is there to handle them. */
export class SignalRelay {
  readonly abort = new AbortController();
  /** The signal that came before there was a command */
  received: NodeJS.Signals | undefined;
  #command: ExecProcess | undefined;
  readonly #listeners = FORWARDED.map((signal) => {
    const listener = (): void => this.#on(signal);
    process.on(signal, listener);
    return () => process.off(signal, listener);
  });

  forwardTo(command: ExecProcess): void {
    this.#command = command;
  }

  #on(signal: NodeJS.Signals): void {
    if (this.#command !== undefined) {
      this.#command.kill(signal);
    } else if (ENDING.has(signal)) {
      this.received ??= signal;
      this.abort.abort();
    }
  }

  stop(): void {
    for (const remove of this.#listeners) remove();
  }
}
