// Metric:     time of snapshot.fork() from a fork that was made ahead
// Unit:       microseconds
// Start:      JavaScript calls snapshot.fork({ pool: 'require', start: 'on-demand' })
// Stop:       JavaScript has the VM, restored
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: as in fork-never
// Samples:    1000, in rounds of 100 between rounds of the reference; forks that are taken are
//             made anew in the background meanwhile, as they are for every user of prewarm()

import { compare } from './support/compare.mjs';

const TOGETHER = 20;

export async function run(bench) {
  const snapshot = await bench.fixture.snapshot();
  const vms = [];
  const closeAll = () => Promise.all(vms.splice(0).map((vm) => vm.close()));
  const task = {
    async beforeEach() {
      if (vms.length % TOGETHER !== 0) return;
      await closeAll();
      await snapshot.prewarm(TOGETHER);
    },
    async run() {
      vms.push(await snapshot.fork({ pool: 'require', start: 'on-demand' }));
    },
    after: closeAll,
  };
  bench.report({
    label: 'fork(), prewarmed',
    ...(await compare(bench, task, { perRound: 100 })),
    targets: [
      { of: 'p50', ratio: 0.1 },
      { of: 'p99', ratio: 0.5 },
    ],
  });
  await snapshot.prewarm(0);
}
