// Metric:     how long a running VM stands still while it is forked: a fork itself, with 16 MiB of
//             scattered pages written since its parent
// Unit:       milliseconds
// Start:      all its vCPUs stand still
// Stop:       they may run again
// Clock:      CLOCK_MONOTONIC, in the core (`stoppedMs` of the snapshot that is taken)
// Page cache: the image is a memfd, all of it in memory; so are the pages that were written
// Samples:    20; the VM runs and writes to all these pages between them

import diagnostics_channel from 'node:diagnostics_channel';

import { expectTouched, touch } from './support/fixture.mjs';
import { nowUs, summarize } from './support/samples.mjs';

const PAGES = 4096;

export async function run(bench) {
  const snapshot = await bench.fixture.snapshot();
  const pages = Math.min(PAGES, bench.fixture.pages);
  const stopped = [];
  const whole = [];
  const copied = [];
  const onSnapshot = ({ result }) => {
    stopped.push(result.stoppedMs);
    copied.push(result.copiedPages);
  };
  diagnostics_channel.subscribe('forklet:snapshot', onSnapshot);
  const vm = await snapshot.fork();
  try {
    for (let i = 0; i < (bench.quick ? 3 : 20); i++) {
      expectTouched(await vm.parked.call(touch(pages)), pages);
      const begin = nowUs();
      const taken = await vm.snapshot();
      const fork = await taken.fork();
      whole.push((nowUs() - begin) / 1000);
      await fork.ready;
      await fork.close();
      await taken.close();
    }
  } finally {
    diagnostics_channel.unsubscribe('forklet:snapshot', onSnapshot);
    await vm.close();
  }
  if (Math.min(...copied) < pages) throw new Error(`Only ${copied} pages were copied`);
  bench.report({
    label: `fork() of a running VM, ${pages} pages: stands still`,
    unit: 'ms',
    summary: summarize(stopped),
    copiedPages: copied,
    targets: [{ of: 'p50', most: 25 }],
  });
  bench.report({
    label: `fork() of a running VM, ${pages} pages: whole`,
    unit: 'ms',
    summary: summarize(whole),
  });
}
