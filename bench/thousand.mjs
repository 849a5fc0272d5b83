// Metric:     1,000 forks alive in one process: host memory that each takes which has not worked,
//             whether each of them answers, and the time of closing them
// Unit:       KiB a fork; milliseconds a fork
// Memory:     by three readings, before and after: the process' own share (Pss of
//             /proc/self/smaps_rollup), and the host's MemAvailable and MemFree, which have the
//             kernel's memory in them, and whatever else the host does meanwhile. A fork's memory
//             is the first plus what the second has more
// Reference:  as many VMs of the same snapshot, by the same readings
// Closing:    from the first call of vm.close() to the last promise that resolves
// Page cache: the image is a memfd, all of it in memory
// Samples:    1 of each

import { expectTouched, touch } from './support/fixture.mjs';
import { memoryInUse, memoryPerVm } from './support/host.mjs';
import { nowUs, summarize } from './support/samples.mjs';

const FORKS = 1000;
const QUICK_FORKS = 50;
const PAGES = 1;
const KiB = 1024;

const inKiB = (each) => Object.values(each).map((bytes) => bytes / KiB);

export async function run(bench) {
  const { fixture } = bench;
  const snapshot = await fixture.snapshot();
  const count = bench.quick ? QUICK_FORKS : FORKS;
  const reference = await fixture.reference({ count: 0, warmUp: 0, alive: count + 1 });
  const referenceEach = memoryPerVm(reference.before, reference.after, count);

  const before = await memoryInUse();
  const begin = nowUs();
  const vms = await snapshot.forkMany(count, { unique: 'program', start: 'on-demand' });
  const madeUs = nowUs() - begin;
  const each = memoryPerVm(before, await memoryInUse(), count);
  for (const [i, reading] of ['Pss', 'MemAvailable', 'MemFree'].entries()) {
    bench.report({
      label: `memory of ${count} forks, each, by ${reading}`,
      unit: 'KiB',
      summary: summarize([inKiB(each)[i]]),
      reference: { summary: summarize([inKiB(referenceEach)[i]]) },
      targets: reading === 'Pss' ? [] : [{ of: 'p50', ratio: 1.2 }],
    });
  }

  let closedUs;
  try {
    for (const vm of vms) expectTouched(await vm.parked.call(touch(PAGES)), PAGES);
  } finally {
    const closing = nowUs();
    await Promise.all(vms.map((vm) => vm.close()));
    closedUs = nowUs() - closing;
  }
  bench.report({
    label: `closing ${count} forks, each`,
    unit: 'ms',
    summary: summarize([closedUs / 1000 / count]),
    reference: { summary: summarize([reference.allClosed / 1000 / count]) },
    targets: [{ of: 'p50', most: 2 }],
  });
  bench.report({
    label: `forkMany(${count}), each`,
    unit: 'us',
    summary: summarize([madeUs / count]),
    reference: { summary: summarize([reference.grown.reduce((a, b) => a + b, 0) / count]) },
  });
}
