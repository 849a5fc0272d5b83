// Metric:     time of snapshot.fork() with nothing made ahead
// Unit:       microseconds
// Start:      JavaScript calls snapshot.fork({ pool: 'never', start: 'on-demand' })
// Stop:       JavaScript has the VM: created, memory mapped, state restored
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: the image is a memfd, all of it in memory; the fork touches none of its pages
// Samples:    200, in rounds of 20 between rounds of the reference; each fork is closed, outside of
//             the span, before the next is made

import { compare } from './support/compare.mjs';
import { forkTask } from './support/forks.mjs';

export async function run(bench) {
  const snapshot = await bench.fixture.snapshot();
  bench.report({
    label: "fork(), pool 'never'",
    ...(await compare(bench, forkTask(snapshot, { pool: 'never' }, 'none'))),
    targets: [{ of: 'p50', ratio: 1.3 }],
  });
}
