// Metric:     from the call of fork() to the guest's first store, prewarmed
// Unit:       microseconds
// Start:      JavaScript calls snapshot.fork() with an input for the program at its park
// Stop:       JavaScript has the program's answer, before which it has stored to one page of its
//             own, and to the exchange: the first store itself cannot be seen from outside
// Reference:  restores, puts the same request into the exchange, and runs the guest until the
//             program stands at its park again
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: the image is a memfd, all of it in memory
// Samples:    500, in rounds of 50 between rounds of the reference

import { comparePrewarmedCall } from './support/parked.mjs';

const PAGES = 1;

export async function run(bench) {
  const result = await comparePrewarmedCall(bench, PAGES, {
    reference: { pages: PAGES },
    span: 'stored',
  });
  bench.report({
    label: 'fork() to first store, prewarmed',
    ...result,
    targets: [{ of: 'p50', ratio: 0.5 }],
  });
}
