// Metric:     round trip of a command in a running VM, alone and with 63 others, and what the same
//             program costs the guest by itself; also in instructions of the guest's kernel, where
//             KVM emulates and so counts them
// Unit:       milliseconds; thousands of instructions
// Start:      JavaScript calls vm.exec(['/bin/true']); of 64 at once: the first of them. The guest by
//             itself: vfork
// Stop:       JavaScript has its result; of 64 at once: the last one, divided by 64. The guest by
//             itself: waitpid has returned
// Clock:      CLOCK_MONOTONIC (process.hrtime); the guest's CLOCK_MONOTONIC
// Page cache: the program is in the guest's memory after the first time
// Samples:    20 in rounds of 5 between rounds of the reference; 64 at once: 5 times

import { readFile } from 'node:fs/promises';

import { sample } from './support/compare.mjs';
import { summarize } from './support/samples.mjs';

const SPAWN = new URL('../out/bench/spawn', import.meta.url);
const COMMAND = ['/bin/true'];
const AT_ONCE = 64;

/** Instructions of the guest's kernel so far, in thousands; 0 where they run on the processor. */
async function emulated(vm) {
  return ((await vm.stats()).kvm['insn_emulation'] ?? 0) / 1000;
}

/** Times of the guest by itself, in microseconds, and instructions of each. */
async function alone(vm, count) {
  const before = await emulated(vm);
  const { stdout } = await vm.exec(['/tmp/spawn', String(count), ...COMMAND], { check: true });
  const instructions = (await emulated(vm)) - before;
  return {
    times: stdout
      .trim()
      .split('\n')
      .map((ns) => Number(ns) / 1000),
    instructions,
  };
}

export async function run(bench) {
  const vm = await bench.fixture.boot();
  try {
    await vm.fs.writeFile('/tmp/spawn', await readFile(SPAWN), { mode: 0o755 });
    const one = { run: () => vm.exec(COMMAND, { check: true }) };
    const many = {
      run: () =>
        Promise.all(Array.from({ length: AT_ONCE }, () => vm.exec(COMMAND, { check: true }))),
    };
    await sample(2, one);
    const perRound = bench.quick ? 1 : 5;
    const rounds = bench.quick ? 1 : 4;
    const samples = [];
    const references = [];
    const counts = { one: [], alone: [], many: [] };
    for (let round = 0; round < rounds; round++) {
      // The program that measures is itself a command: what one more run adds is what counts.
      const [few, more] = [await alone(vm, 1), await alone(vm, 1 + perRound)];
      references.push(...more.times.slice(1));
      counts.alone.push((more.instructions - few.instructions) / perRound);
      const before = await emulated(vm);
      samples.push(...(await sample(perRound, one)));
      counts.one.push(((await emulated(vm)) - before) / perRound);
    }
    const crowded = [];
    for (let round = 0; round < (bench.quick ? 1 : 5); round++) {
      const before = await emulated(vm);
      const [us] = await sample(1, many);
      crowded.push(us / AT_ONCE);
      counts.many.push(((await emulated(vm)) - before) / AT_ONCE);
    }
    report(bench, 'ms', { one: samples, alone: references, many: crowded }, (us) => us / 1000);
    if (counts.one[0] > 0) report(bench, 'k instr', counts, (thousands) => thousands);
  } finally {
    await vm.close();
  }
}

function report(bench, unit, { one, alone: references, many }, scale) {
  const reference = { summary: summarize(references.map(scale)) };
  for (const [label, values] of [
    ["exec(['/bin/true'])", one],
    [`${AT_ONCE} of them at once, each`, many],
  ]) {
    bench.report({
      label: `${label}, to the guest's own`,
      unit,
      summary: summarize(values.map(scale)),
      reference,
      targets: [{ of: 'p50', ratio: 1.3 }],
    });
  }
}
