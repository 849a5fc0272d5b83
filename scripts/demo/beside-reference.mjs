// Times of ours beside those of the reference: bench/reference/restore.c, which restores the same
// saved snapshot with the plain sequence of KVM calls, and makes nothing ahead.

import { compare } from '../../bench/support/compare.mjs';
import { runReference } from '../../bench/support/reference.mjs';
import { milliseconds } from './steps.mjs';

const ROUNDS = 5;

/** '0.62 ms (reference 0.58 ms, 1.07x)', of microseconds. */
export function beside(us, referenceUs) {
  const ratio = (us / referenceUs).toFixed(2);
  return `${milliseconds(us / 1000)} (reference ${milliseconds(referenceUs / 1000)}, ${ratio}x)`;
}

/** Runs a task of bench/support in turns with the reference, and says the medians. */
export async function medians(directory, task, perRound) {
  const fixture = { reference: (options) => runReference(directory, options) };
  const bench = { quick: false, rounds: ROUNDS, fixture };
  const { summary, reference } = await compare(bench, task, { perRound });
  return `p50 of ${summary.n}: ${beside(summary.p50, reference.summary.p50)}`;
}
