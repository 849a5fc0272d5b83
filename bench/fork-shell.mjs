// Metric:     time of snapshot.fork() from an empty VM that was made ahead
// Unit:       microseconds
// Start:      JavaScript calls snapshot.fork({ start: 'on-demand' })
// Stop:       JavaScript has the VM: memory mapped, state restored
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: as in fork-never
// Samples:    200, in rounds of 20 between rounds of the reference; before each, a pause in which
//             the empty VM is made

import { setTimeout as delay } from 'node:timers/promises';

import { compare } from './support/compare.mjs';
import { forkTask } from './support/forks.mjs';

const REFILL_MS = 20;

export async function run(bench) {
  const snapshot = await bench.fixture.snapshot();
  // The second fork finds none either, and has some made from then on.
  for (let i = 0; i < 2; i++) await (await snapshot.fork({ start: 'on-demand' })).close();
  const task = { ...forkTask(snapshot, {}, 'shell'), beforeEach: () => delay(REFILL_MS) };
  bench.report({
    label: 'fork(), shells made ahead',
    ...(await compare(bench, task)),
    targets: [{ of: 'p50', ratio: 0.8 }],
  });
}
