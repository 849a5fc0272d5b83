// Exit codes of `forklet run` besides the command's own, as env(1) and timeout(1) have them.

import { constants } from 'node:os';

/** The command ran longer than --timeout. */
export const TIMED_OUT = 124;
/** forklet itself failed. */
export const FAILURE = 125;
/** The command was found but could not be started. */
export const NOT_EXECUTABLE = 126;
/** The command was not found. */
export const NOT_FOUND = 127;

const SIGNAL_BASE = 128;

/** What a shell reports for a command that a signal ended. */
export function signalExitCode(signal: NodeJS.Signals): number {
  const realtime = /^SIGRTMIN\+(\d+)$/.exec(signal);
  const number = realtime ? 34 + Number(realtime[1]) : constants.signals[signal];
  return SIGNAL_BASE + (number ?? 0);
}

/** What was typed makes no sense. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}
