// Options of everything that makes and uses snapshots. See validate.ts.

import { checkHostname } from '../../options.js';
import type { ParkedCallOptions } from '../../parked.js';
import type { ForkOptions, LoadOptions, SaveOptions, SnapshotOptions } from '../../snapshot.js';
import {
  checkBoolean,
  checkInteger,
  checkOptions,
  checkSignal,
  checkText,
  checkTimeout,
  show,
  wrongType,
} from '../base/validate.js';

export const DEFAULT_FREEZE_TIMEOUT_MS = 30_000;
export const DEFAULT_FORK_TIMEOUT_MS = 60_000;
export const DEFAULT_CALL_TIMEOUT_MS = 60_000;

/** Bytes of the pages through which a parked program gets its input, less their header. */
export const MAX_CALL_BYTES = 15 * 4096 - 256;

/** Most characters of a snapshot's label. */
export const MAX_LABEL_LENGTH = 1024;

/** Most forks that one call makes or keeps ready; the host's limits are lower. */
export const MAX_FORKS = 100_000;

const PLACES = ['agent', 'program'] as const;

const take = <T>(value: unknown, check: (value: unknown) => T, otherwise: T): T =>
  value === undefined ? otherwise : check(value);

function checkChoice<T extends string>(option: string, value: unknown, choices: readonly T[]): T {
  if ((choices as readonly unknown[]).includes(value)) return value as T;
  const listed = choices.map((choice) => `'${choice}'`).join(' or ');
  throw wrongType(option, listed, value);
}

const optionalSignal = (value: unknown): AbortSignal | undefined =>
  take(value, (given) => checkSignal('signal', given), undefined);

export interface CheckedSnapshot {
  readonly at: 'agent' | 'program';
  readonly label: string | undefined;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export function checkLabel(option: string, value: unknown): string {
  const label = checkText(option, value);
  if (label.length <= MAX_LABEL_LENGTH) return label;
  throw new RangeError(
    `Option "${option}" must have at most ${MAX_LABEL_LENGTH} characters; got ${label.length}`,
  );
}

export function checkPlace(value: unknown): 'agent' | 'program' {
  return take(value, (at) => checkChoice('at', at, PLACES), 'agent');
}

/** Checks what was passed to `vm.snapshot()`. */
export function checkSnapshot(options: SnapshotOptions | undefined): CheckedSnapshot {
  const given = checkOptions('vm.snapshot()', options, ['at', 'label', 'timeoutMs', 'signal']);
  return {
    at: checkPlace(given.at),
    label: take(given.label, (label) => checkLabel('label', label), undefined),
    timeoutMs: take(
      given.timeoutMs,
      (ms) => checkTimeout('timeoutMs', ms),
      DEFAULT_FREEZE_TIMEOUT_MS,
    ),
    signal: optionalSignal(given.signal),
  };
}

export interface CheckedFork {
  readonly start: 'now' | 'on-demand';
  readonly pool: 'use' | 'never' | 'require';
  readonly unique: 'agent' | 'program';
  readonly input: Uint8Array | undefined;
  readonly hostname: string | undefined;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

const STARTS = ['now', 'on-demand'] as const;
const POOL_USES = ['use', 'never', 'require'] as const;
const FORK_OPTIONS = [
  'start',
  'pool',
  'unique',
  'input',
  'hostname',
  'timeoutMs',
  'signal',
] as const;

/** Checks the options of `fork()` and `forkMany()`: plainly, since a fork waits for it. */
export function checkFork(where: string, options: ForkOptions | undefined): CheckedFork {
  const { start, pool, unique, input, hostname, timeoutMs, signal } = checkOptions(
    where,
    options,
    FORK_OPTIONS,
  );
  return {
    start: start === undefined ? 'now' : checkChoice('start', start, STARTS),
    pool: pool === undefined ? 'use' : checkChoice('pool', pool, POOL_USES),
    unique: unique === undefined ? 'agent' : checkChoice('unique', unique, PLACES),
    input: input === undefined ? undefined : checkInput('Option "input"', input),
    hostname: hostname === undefined ? undefined : checkHostname(hostname),
    timeoutMs:
      timeoutMs === undefined ? DEFAULT_FORK_TIMEOUT_MS : checkTimeout('timeoutMs', timeoutMs),
    signal: signal === undefined ? undefined : checkSignal('signal', signal),
  };
}

export function checkForkCount(where: string, count: unknown, min: number): number {
  if (typeof count !== 'number') {
    throw new TypeError(`The count of ${where} must be a number; got ${show(count)}`);
  }
  if (!Number.isSafeInteger(count) || count < min || count > MAX_FORKS) {
    throw new RangeError(
      `The count of ${where} must be an integer from ${min} to ${MAX_FORKS}; got ${show(count)}`,
    );
  }
  return count;
}

/** A copy of what a parked program is to be given: the caller's bytes may change meanwhile. */
function checkInput(what: string, value: unknown): Uint8Array {
  if (!(value instanceof Uint8Array)) {
    throw new TypeError(`${what} must be a Uint8Array; got ${show(value)}`);
  }
  if (value.length > MAX_CALL_BYTES) {
    throw new RangeError(`${what} must have at most ${MAX_CALL_BYTES} bytes; got ${value.length}`);
  }
  return new Uint8Array(value);
}

export interface CheckedCall {
  readonly input: Uint8Array;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
  readonly maxBytes: number;
}

/** A call without options, of an input that has been checked. */
export function defaultCall(input: Uint8Array): CheckedCall {
  return {
    input,
    timeoutMs: DEFAULT_CALL_TIMEOUT_MS,
    signal: undefined,
    maxBytes: MAX_CALL_BYTES,
  };
}

/** Checks what was passed to `vm.parked.call()`. */
export function checkCall(input: unknown, options: ParkedCallOptions | undefined): CheckedCall {
  const given = checkOptions('vm.parked.call()', options, ['timeoutMs', 'signal', 'maxBytes']);
  return {
    input: checkInput('The input of vm.parked.call()', input),
    timeoutMs: take(
      given.timeoutMs,
      (ms) => checkTimeout('timeoutMs', ms),
      DEFAULT_CALL_TIMEOUT_MS,
    ),
    signal: optionalSignal(given.signal),
    maxBytes: take(
      given.maxBytes,
      (bytes) => checkInteger('maxBytes', bytes, { min: 0, max: MAX_CALL_BYTES }),
      MAX_CALL_BYTES,
    ),
  };
}

export function checkDirectory(where: string, value: unknown): string {
  if (typeof value !== 'string' || value === '' || value.includes('\0')) {
    throw new TypeError(`The directory of ${where} must be a path; got ${show(value)}`);
  }
  return value;
}

export interface CheckedSave {
  readonly directory: string;
  readonly overwrite: boolean;
  readonly signal: AbortSignal | undefined;
}

export function checkSave(directory: unknown, options: SaveOptions | undefined): CheckedSave {
  const given = checkOptions('snapshot.save()', options, ['overwrite', 'signal']);
  return {
    directory: checkDirectory('snapshot.save()', directory),
    overwrite: take(given.overwrite, (value) => checkBoolean('overwrite', value), false),
    signal: optionalSignal(given.signal),
  };
}

export interface CheckedLoad {
  readonly directory: string;
  readonly verify: boolean;
  readonly signal: AbortSignal | undefined;
}

export function checkLoad(directory: unknown, options: LoadOptions | undefined): CheckedLoad {
  const given = checkOptions('Snapshot.load()', options, ['verify', 'signal']);
  return {
    directory: checkDirectory('Snapshot.load()', directory),
    verify: take(given.verify, (value) => checkBoolean('verify', value), false),
    signal: optionalSignal(given.signal),
  };
}
