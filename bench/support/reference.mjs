// Runs the reference, bench/reference/restore.c, and gives its times in microseconds.

import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const execute = promisify(execFile);
const program = fileURLToPath(new URL('../../out/bench/restore', import.meta.url));

const inUs = (times) => times.map((ns) => ns / 1000);

/**
 * @param {string} directory - a saved snapshot
 * @param {{ count: number, warmUp?: number, alive?: number, pages?: number }} options - `pages`:
 *   run each VM until its program has stored to so many
 */
export async function runReference(directory, { count, warmUp = 5, alive = 1, pages }) {
  const args = [directory, '--count', count, '--warm-up', warmUp, '--alive', alive];
  if (pages !== undefined) args.push('--first-store', pages);
  const { stdout } = await execute(program, args.map(String), { maxBuffer: 64 << 20 });
  const { grownNs, restoredNs, storedNs, closedNs, allClosedNs, ...rest } = JSON.parse(stdout);
  return {
    ...rest,
    grown: inUs(grownNs),
    restored: inUs(restoredNs),
    stored: inUs(storedNs),
    closed: inUs(closedNs),
    allClosed: allClosedNs / 1000,
  };
}
