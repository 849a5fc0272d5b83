// Metric:     time of snapshot.fork() with 63 other forks alive in the process
// Unit:       microseconds
// Start:      JavaScript calls snapshot.fork(): with defaults, and with pool 'never'
// Stop:       JavaScript has the VM, restored
// Reference:  the same with 63 of its own VMs alive
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: as in fork-never
// Samples:    100 for each, in rounds of 10 between rounds of the reference: always the 64th, which
//             is closed before the next is made

import { setTimeout as delay } from 'node:timers/promises';

import { compare } from './support/compare.mjs';
import { forkTask } from './support/forks.mjs';

const ALIVE = 64;
const SETTLE_MS = 20;

export async function run(bench) {
  const snapshot = await bench.fixture.snapshot();
  const others = await snapshot.forkMany(ALIVE - 1, { start: 'on-demand' });
  try {
    for (const [label, pool] of [
      ['64th fork()', 'use'],
      ["64th fork(), pool 'never'", 'never'],
    ]) {
      const task = { ...forkTask(snapshot, { pool }), beforeEach: () => delay(SETTLE_MS) };
      const how = { perRound: 10, reference: { alive: ALIVE, count: 10 } };
      bench.report({
        label,
        ...(await compare(bench, task, how)),
        targets: [{ of: 'p50', ratio: 1.15 }],
      });
    }
  } finally {
    await Promise.all(others.map((vm) => vm.close()));
  }
}
