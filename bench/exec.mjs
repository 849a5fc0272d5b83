// Metric:     round trip of a command in a running VM
// Unit:       milliseconds
// Start:      JavaScript calls vm.exec(['true'])
// Stop:       JavaScript has its result
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: the program is in the guest's memory after the first time
// Samples:    20

import { sample } from './support/compare.mjs';
import { summarize } from './support/samples.mjs';

export async function run(bench) {
  const vm = await bench.fixture.boot();
  try {
    const task = { run: () => vm.exec(['true'], { check: true }) };
    await sample(2, task);
    const times = await sample(bench.quick ? 2 : 20, task);
    bench.report({
      label: "exec(['true'])",
      unit: 'ms',
      summary: summarize(times.map((us) => us / 1000)),
    });
  } finally {
    await vm.close();
  }
}
