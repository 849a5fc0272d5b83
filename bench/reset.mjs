// Metric:     time of vm.reset(), after one parked call and after calls that write to more pages
// Unit:       microseconds; for the second figure, microseconds a dirty page
// Start:      JavaScript calls vm.reset()
// Stop:       the promise has resolved: memory and state are the snapshot's again
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: the image is a memfd, all of it in memory
// Samples:    500 after a call that writes to 8 pages, in rounds of 50 between rounds of the
//             reference; then 20 for each number of pages, whose medians make the slope

import { compare, sample } from './support/compare.mjs';
import { expectTouched, touch } from './support/fixture.mjs';
import { slope, summarize } from './support/samples.mjs';

const PAGES = 8;
const MORE_PAGES = [0, 64, 256, 1024, 4096];

/** Resets the VM, each time after a call that writes to so many pages. */
const resetTask = (vm, pages) => ({
  beforeEach: async () => expectTouched(await vm.parked.call(touch(pages)), pages),
  run: () => vm.reset(),
});

export async function run(bench) {
  const snapshot = await bench.fixture.snapshot();
  const vm = await snapshot.fork({ unique: 'program', start: 'on-demand' });
  try {
    bench.report({
      label: 'reset() after one parked call',
      ...(await compare(bench, resetTask(vm, PAGES), { perRound: 50 })),
      targets: [{ of: 'p50', ratio: 0.5 }],
    });

    const points = [];
    for (const pages of MORE_PAGES.filter((pages) => pages <= bench.fixture.pages)) {
      const times = await sample(bench.quick ? 3 : 20, resetTask(vm, pages));
      points.push([pages, summarize(times).p50]);
    }
    bench.report({
      label: 'reset(), each further dirty page',
      unit: 'us/page',
      summary: summarize([slope(points)]),
      points,
      targets: [{ of: 'p50', most: 3 }],
    });
  } finally {
    await vm.close();
  }
}
