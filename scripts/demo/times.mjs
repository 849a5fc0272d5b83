// How long a fork and a reset take, beside the reference.

import { forkTask, prewarmedTask } from '../../bench/support/forks.mjs';
import { runReference } from '../../bench/support/reference.mjs';
import { summarize } from '../../bench/support/samples.mjs';
import { beside, medians } from './beside-reference.mjs';
import { milliseconds, step, timed } from './steps.mjs';

const RUNNING_FORKS = 10;

function resetTask(vm) {
  return {
    beforeEach: () => vm.fs.writeFile('/tmp/written', 'since the last reset'),
    run: () => vm.reset(),
  };
}

/** Of forking a running VM: all of it, and the part that the reference does as well. */
async function runningForks(vm, directory) {
  const whole = [];
  const restored = [];
  for (let i = 0; i < RUNNING_FORKS; i++) {
    const { result: fork, ms } = await timed(() => vm.fork({ start: 'on-demand' }));
    whole.push(ms);
    restored.push((fork.timings.createMs + fork.timings.restoreMs) * 1000);
    await fork.close();
  }
  const reference = summarize((await runReference(directory, { count: 20 })).restored);
  return [
    `a running VM, frozen and forked: p50 of ${whole.length}: ${milliseconds(summarize(whole).p50)}`,
    `  of that, making the fork: ${beside(summarize(restored).p50, reference.p50)}`,
  ];
}

export async function showTimes(snapshot, directory) {
  await step('Times, in turns with the reference', async () => {
    const never = await medians(directory, forkTask(snapshot, { pool: 'never' }, 'none'), 20);
    const prewarmed = await medians(directory, prewarmedTask(snapshot), 20);
    await snapshot.prewarm(0);
    const fork = await snapshot.fork();
    try {
      return [
        'the reference is bench/reference/restore.c: plain KVM calls that restore this snapshot',
        `fork(), nothing made ahead: ${never}`,
        `fork(), made ahead by prewarm(): ${prewarmed}`,
        `reset() after a file was written: ${await medians(directory, resetTask(fork), 4)}`,
        ...(await runningForks(fork, directory)),
      ];
    } finally {
      await fork.close();
    }
  });
}
