// When a call of `vm.fs` is to end early: by its caller's signal, or by its deadline.
//
// Both come as one signal, whose reason tells which it was.

import { AbortError, VmError } from '../../errors.js';
import type { FsOptions } from '../../guest-fs-options.js';
import { checkSignal, checkTimeout } from '../base/validate.js';

/** The reason of a deadline. */
class Overdue {
  readonly method: string;
  readonly timeoutMs: number;

  constructor(method: string, timeoutMs: number) {
    this.method = method;
    this.timeoutMs = timeoutMs;
  }
}

/** How those that have a deadline are let go of. */
const releases = new WeakMap<AbortSignal, () => void>();

/** Checks `signal` and `timeoutMs`. Whoever gets a signal releases it when the call is over. */
export function limitOf(
  method: string,
  options: { readonly [Name in keyof FsOptions]: unknown },
): AbortSignal | undefined {
  const signal = options.signal === undefined ? undefined : checkSignal('signal', options.signal);
  if (options.timeoutMs === undefined) return signal;
  const timeoutMs = checkTimeout('timeoutMs', options.timeoutMs);
  const both = new AbortController();
  const onAbort = (): void => both.abort(signal?.reason);
  if (signal?.aborted) onAbort();
  signal?.addEventListener('abort', onAbort, { once: true });
  const timer = setTimeout(() => both.abort(new Overdue(method, timeoutMs)), timeoutMs).unref();
  releases.set(both.signal, () => {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  });
  return both.signal;
}

/** Nothing is to end early any more. */
export function releaseLimit(signal: AbortSignal | undefined): void {
  if (signal !== undefined) releases.get(signal)?.();
}

/** Why the signal has ended a call. */
export function limitError({ reason }: AbortSignal): Error {
  if (!(reason instanceof Overdue)) return new AbortError(reason);
  return new VmError({
    code: 'ERR_VM_TIMEOUT',
    message: `vm.fs.${reason.method}() took longer than ${reason.timeoutMs} ms`,
  });
}
