// Metric:     time of a cold boot
// Unit:       milliseconds
// Start:      JavaScript calls Vm.create()
// Stop:       the guest agent has answered
// Clock:      CLOCK_MONOTONIC (performance.now)
// Page cache: kernel, agent and root file system are in it after the first boot
// Samples:    3

import { summarize } from './support/samples.mjs';

export async function run(bench) {
  const { fixture } = bench;
  // The VM that other benches share has booted as well as any.
  await fixture.vm();
  while (fixture.boots.length < (bench.quick ? 1 : 3)) await (await fixture.boot()).close();
  const times = fixture.boots.map(({ totalMs }) => totalMs);
  bench.report({ label: 'Vm.create()', unit: 'ms', summary: summarize(times) });
}
