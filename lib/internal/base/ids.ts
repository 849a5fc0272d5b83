import { randomBytes } from 'node:crypto';

const ID_DIGITS = 16;

/** Random digits ahead of need: asking for a few costs as much as asking for many. */
let digits = '';
let used = 0;

/** A name that nothing else has: the prefix and 16 hexadecimal digits. */
export function newId(prefix: string): string {
  if (used === digits.length) {
    digits = randomBytes(64 * ID_DIGITS).toString('hex');
    used = 0;
  }
  used += ID_DIGITS;
  return `${prefix}-${digits.slice(used - ID_DIGITS, used)}`;
}
