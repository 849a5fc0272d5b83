import { constants } from 'node:os';

import { show } from '../base/validate.js';

// Signal numbers of Linux on x86-64, which is what both the guest and every host that runs one are.
const numbers: Readonly<Record<string, number>> = constants.signals;

const names = new Map<number, NodeJS.Signals>();
for (const [name, number] of Object.entries(numbers)) {
  // SIGABRT and SIGIO have second names behind the usual ones.
  if (!names.has(number)) names.set(number, name as NodeJS.Signals);
}

/** First real-time signal of the kernel's numbering, for names of signals that have none. */
const REALTIME_MIN = 34;

/** The name of a signal number of the guest, such as `SIGKILL` or `SIGRTMIN+3`. */
export function signalName(number: number): NodeJS.Signals {
  const name = names.get(number);
  if (name !== undefined) return name;
  const offset = number - REALTIME_MIN;
  return (offset < 0 ? `SIG${number}` : `SIGRTMIN+${offset}`) as NodeJS.Signals;
}

/** The number of a signal that a caller named. */
export function signalNumber(signal: NodeJS.Signals | number): number {
  const number = typeof signal === 'number' ? signal : numbers[signal];
  if (number === undefined || !Number.isInteger(number) || number < 1 || number > 64) {
    throw new TypeError(
      `Signal must be a name such as 'SIGTERM' or a number from 1 to 64; got ${show(signal)}`,
    );
  }
  return number;
}
