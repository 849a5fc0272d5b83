// Metric:     time of snapshot.fork() from a fork that was made ahead
// Unit:       microseconds
// Start:      JavaScript calls snapshot.fork({ pool: 'require', start: 'on-demand' })
// Stop:       JavaScript has the VM, restored
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: as in fork-never
// Samples:    1000, in rounds of 100 between rounds of the reference; forks that are taken are
//             made anew in the background meanwhile, as they are for every user of prewarm()

import { compare } from './support/compare.mjs';
import { prewarmedTask } from './support/forks.mjs';

export async function run(bench) {
  const snapshot = await bench.fixture.snapshot();
  bench.report({
    label: 'fork(), prewarmed',
    ...(await compare(bench, prewarmedTask(snapshot), { perRound: 100 })),
    targets: [
      { of: 'p50', ratio: 0.1 },
      { of: 'p99', ratio: 0.5 },
    ],
  });
  await snapshot.prewarm(0);
}
