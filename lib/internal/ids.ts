import { randomFillSync } from 'node:crypto';

const ID_BYTES = 8;

/** Random bytes ahead of need: asking for a few costs as much as asking for many. */
const pool = Buffer.alloc(128 * ID_BYTES);
let used = pool.length;

/** A name that nothing else has: the prefix and 16 hexadecimal digits. */
export function newId(prefix: string): string {
  if (used === pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  const digits = pool.toString('hex', used, used + ID_BYTES);
  used += ID_BYTES;
  return `${prefix}-${digits}`;
}
