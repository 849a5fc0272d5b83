// Checks of what callers pass in. Every message names the function and the option; nothing is
// clamped and nothing unknown is ignored.

import { inspect } from 'node:util';

/** A value as it appears in a message: short, on one line. */
export function show(value: unknown): string {
  if (typeof value === 'function') return value.name === '' ? 'a function' : `${value.name}()`;
  const text = inspect(value, { depth: 0, breakLength: Infinity, maxStringLength: 60 });
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/** Edits (insert, delete, replace, swap of neighbours) that turn one name into the other. */
function editDistance(a: string, b: string): number {
  let beforePrevious: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      let best = Math.min(replaced, (previous[j] ?? 0) + 1, (current[j - 1] ?? 0) + 1);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        best = Math.min(best, (beforePrevious[j - 2] ?? 0) + 1);
      }
      current.push(best);
    }
    beforePrevious = previous;
    previous = current;
  }
  return previous[b.length] ?? 0;
}

/** The known name that a misspelled one was most likely meant to be. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const candidate of known) {
    const distance = editDistance(name.toLowerCase(), candidate.toLowerCase());
    // A name without its unit, or with another one, is a near one too.
    const prefix = name.length >= 4 && candidate.toLowerCase().startsWith(name.toLowerCase());
    const effective = prefix ? Math.min(distance, 1) : distance;
    if (effective < bestDistance) {
      best = candidate;
      bestDistance = effective;
    }
  }
  return best;
}

/** Checks that `options` is an object without unknown keys. */
export function checkOptions<T extends object>(
  where: string,
  options: T | undefined,
  known: readonly (keyof T & string)[],
): Partial<T> {
  if (options === undefined) return {};
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new TypeError(`The options of ${where} must be an object; got ${show(options)}`);
  }
  for (const key of Object.keys(options)) {
    if ((known as readonly string[]).includes(key)) continue;
    const near = nearest(key, known);
    const hint = near === undefined ? '' : `; did you mean "${near}"?`;
    throw new TypeError(`Unknown option "${key}" of ${where}${hint}`);
  }
  return options;
}

/** A wrong type of one option. */
export function wrongType(option: string, needed: string, value: unknown): TypeError {
  return new TypeError(`Option "${option}" must be ${needed}; got ${show(value)}`);
}

/** Bounds of an integer option. */
export interface IntegerRange {
  readonly min: number;
  readonly max: number;
  /** The value must be a multiple of it; default 1 */
  readonly multipleOf?: number;
}

export function checkInteger(option: string, value: unknown, range: IntegerRange): number {
  if (typeof value !== 'number') throw wrongType(option, 'a number', value);
  const { min, max, multipleOf = 1 } = range;
  if (!Number.isSafeInteger(value) || value < min || value > max || value % multipleOf !== 0) {
    const multiple = multipleOf === 1 ? '' : ` that is a multiple of ${multipleOf}`;
    throw new RangeError(
      `Option "${option}" must be an integer from ${min} to ${max}${multiple}; got ${show(value)}`,
    );
  }
  return value;
}

/** Milliseconds that a Node timer can count. */
export const MAX_TIMEOUT_MS = 2 ** 31 - 1;

export function checkTimeout(option: string, value: unknown): number {
  return checkInteger(option, value, { min: 1, max: MAX_TIMEOUT_MS });
}

/** A string that can go to a kernel: no NUL inside. */
export function checkText(option: string, value: unknown): string {
  if (typeof value !== 'string') throw wrongType(option, 'a string', value);
  if (value.includes('\0')) {
    throw new TypeError(`Option "${option}" must not contain NUL; got ${show(value)}`);
  }
  return value;
}

export function checkBoolean(option: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw wrongType(option, 'a boolean', value);
  return value;
}

export function checkSignal(option: string, value: unknown): AbortSignal {
  if (!(value instanceof AbortSignal)) throw wrongType(option, 'an AbortSignal', value);
  return value;
}

export function checkEncoding(option: string, value: unknown): BufferEncoding {
  if (typeof value !== 'string') throw wrongType(option, 'a string', value);
  if (!Buffer.isEncoding(value)) {
    throw new TypeError(
      `Option "${option}" must be an encoding that Node knows; got ${show(value)}`,
    );
  }
  return value;
}

/** Environment variables; `undefined` removes one that an outer layer set. */
export type Environment = Readonly<Record<string, string | undefined>>;

export function checkEnvironment(option: string, value: unknown): Environment {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw wrongType(option, 'an object', value);
  }
  for (const [name, text] of Object.entries(value)) {
    if (name === '' || name.includes('=') || name.includes('\0')) {
      throw new TypeError(
        `Option "${option}" has a name that is empty or contains "=" or NUL: ${show(name)}`,
      );
    }
    if (text !== undefined) checkText(`${option}.${name}`, text);
  }
  return value as Environment;
}
