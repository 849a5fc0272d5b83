// A hundred forks of a snapshot, each of which has everything to itself.

import { memoryInUse } from '../../bench/support/host.mjs';
import { runReference } from '../../bench/support/reference.mjs';
import { summarize } from '../../bench/support/samples.mjs';
import { beside } from './beside-reference.mjs';
import { checkState } from './guest-state.mjs';
import { expectSame, mebibytes, milliseconds, step, timed } from './steps.mjs';

const COPIES = 100;
const WRITERS = 10;
const ROUNDS = 5;
const MINE = '/tmp/mine';

const closeAll = (vms) => Promise.all(vms.map((vm) => vm.close()));
const read = (vm) => vm.fs.readFile(MINE, 'utf8');

async function expectNone(who, vm) {
  const found = await read(vm).catch(({ code }) => code);
  expectSame(`${MINE} of ${who}`, found, 'ENOENT');
}

async function showWriters(vm, forks) {
  await step(`${WRITERS} of them write a file each, and read it back`, async () => {
    const writers = forks.slice(0, WRITERS);
    const texts = await Promise.all(
      writers.map(async (fork, i) => {
        await fork.fs.writeFile(MINE, `fork ${i + 1} was here`);
        return await read(fork);
      }),
    );
    for (const [i, text] of texts.entries()) expectSame(MINE, text, `fork ${i + 1} was here`);
    await expectNone('the VM that was frozen', vm);
    await expectNone('an 11th fork', forks[WRITERS]);
    return [
      ...texts.map((text, i) => `fork ${i + 1}: ${MINE}: '${text}'`),
      `${MINE} of the VM that was frozen, and of an 11th fork: ENOENT`,
    ];
  });
}

async function showForkOfFork(fork, counter) {
  await step('One of these ten, running, is forked again', async () => {
    const { result: child, ms } = await timed(() => fork.fork());
    try {
      const inherited = await read(child);
      expectSame('what it inherits', inherited, 'fork 1 was here');
      await child.fs.writeFile(MINE, 'and its fork');
      const { answer } = await checkState(child, counter, 'fork of a fork');
      const kept = await read(fork);
      expectSame('what the parent keeps', kept, 'fork 1 was here');
      return [
        `frozen and forked in ${milliseconds(ms)}`,
        `its fork inherits '${inherited}' and writes '${await read(child)}'; it keeps '${kept}'`,
        `the shell from before the first freeze goes on: '${answer}'`,
      ];
    } finally {
      await child.close();
    }
  });
}

async function showReset(fork, counter) {
  await step('One of these ten is reset to the snapshot', async () => {
    const before = await read(fork);
    const { ms } = await timed(() => fork.reset());
    await expectNone('a fork that was reset', fork);
    const { file, answer } = await checkState(fork, counter, 'after a reset');
    return [
      `reset in ${milliseconds(ms)}; ${MINE} before: '${before}'; after: ENOENT`,
      `${file}; the shell: '${answer}'`,
    ];
  });
}

/** Mean times of one of so many forks made at once, and of one of the reference's; medians of both. */
async function timesAtOnce(snapshot, directory) {
  const ours = [];
  const references = [];
  for (let round = 0; round < ROUNDS; round++) {
    const { grown } = await runReference(directory, { count: 0, warmUp: 0, alive: COPIES + 1 });
    references.push(grown.reduce((sum, us) => sum + us, 0) / COPIES);
    const { result, ms } = await timed(() => snapshot.forkMany(COPIES, { start: 'on-demand' }));
    ours.push((ms * 1000) / COPIES);
    await closeAll(result);
  }
  return beside(summarize(ours).p50, summarize(references).p50);
}

async function forkAtOnce(snapshot, directory) {
  let forks;
  await step(`${COPIES} forks at once`, async () => {
    const each = await timesAtOnce(snapshot, directory);
    const before = await memoryInUse();
    forks = await snapshot.forkMany(COPIES, { start: 'on-demand' });
    const { pssBytes } = await memoryInUse();
    return [
      `forkMany(${COPIES}): each ${each}, medians of ${ROUNDS}`,
      `${COPIES} VMs of ${mebibytes(snapshot.memoryBytes)} take ` +
        `${mebibytes(pssBytes - before.pssBytes)} of this process, beside KVM's own memory`,
    ];
  });
  return forks;
}

/** `counter` is the id of makeState(). */
export async function showForks({ vm, snapshot, directory, counter }) {
  const forks = await forkAtOnce(snapshot, directory);
  try {
    await showWriters(vm, forks);
    await showForkOfFork(forks[0], counter);
    await showReset(forks[1], counter);
  } finally {
    await closeAll(forks);
  }
}
