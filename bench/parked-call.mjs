// Metric:     a call of a parked program in a VM of its own: prewarmed fork, input, answer
// Unit:       microseconds
// Start:      JavaScript calls snapshot.fork() with an input for the program at its park
// Stop:       JavaScript has the answer of a C program that has touched at most 16 pages
// Reference:  the plain restore alone, without running the guest
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: the image is a memfd, all of it in memory
// Samples:    500, in rounds of 50 between rounds of the reference

import { comparePrewarmedCall } from './support/parked.mjs';

// Of its own; with its stack, the exchange and what the host writes at entry, 16.
const PAGES = 8;
const PAGE_BYTES = 4096;

export async function run(bench) {
  const result = await comparePrewarmedCall(bench, PAGES);
  const touched = result.privateBytes / PAGE_BYTES;
  if (touched > 16) throw new Error(`The call has made ${touched} pages private, more than 16`);
  bench.report({
    label: 'prewarmed fork and parked call',
    ...result,
    targets: [{ of: 'p50', ratio: 1 }],
  });
}
