import { describe, expect, test } from 'vitest';

import { runChild } from '../helpers/child.js';
import { hasKvm } from '../helpers/has-kvm.js';

const BOOT = 'const vm = await Vm.create({ bootTimeoutMs: 200_000 });';

const counting = `
import { readdirSync, readFileSync } from 'node:fs';
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const guestMappings = () => readFileSync('/proc/self/maps', 'utf8').split('\\n')
  .filter((line) => /memfd:|kvm/.test(line)).length;
const threads = () => readdirSync('/proc/self/task').length;
`;

describe.runIf(hasKvm)('forks and snapshots', () => {
  test('that are collected without close() are closed, with a warning each', async () => {
    const result = await runChild(
      `${counting}
      process.on('warning', ({ code, message }) => console.log(code, message.split(' ')[1]));
      ${BOOT}
      await (await vm.snapshot()).close();
      const before = guestMappings();
      let ids;
      await (async () => {
        const snapshot = await vm.snapshot();
        await snapshot.prewarm(1);
        const fork = await snapshot.fork();
        await fork.ready;
        ids = [snapshot.id, fork.id];
      })();
      const held = guestMappings();
      for (let i = 0; i < 200 && guestMappings() > before; i++) {
        globalThis.gc();
        await sleep(20);
      }
      console.log(JSON.stringify({ ids, before, held, after: guestMappings() }));
      await vm.close();`,
      { execArgv: ['--expose-gc'] },
    );

    const lines = result.stdout.trim().split('\n');
    const { ids, before, held, after } = JSON.parse(lines.pop() ?? '');
    expect(lines.sort()).toEqual([
      `FORKLET_SNAPSHOT_NOT_CLOSED ${ids[0]}`,
      `FORKLET_VM_NOT_CLOSED ${ids[1]}`,
    ]);
    expect(held).toBeGreaterThan(before);
    expect(after).toBe(before);
  });

  test('do not hold the process when they are idle, and do while one becomes ready', async () => {
    const result = await runChild(
      `${BOOT}
      const snapshot = await vm.snapshot();
      await snapshot.prewarm(1);
      const waiting = await snapshot.fork({ start: 'on-demand' });
      const fork = await snapshot.fork();
      fork.ready.then(() => console.log('ready'));`,
    );

    expect(result).toMatchObject({ exitCode: 0, signal: null, stdout: 'ready\n', stderr: '' });
  });

  // The failure was dropped, and the fork ended a minute later as one that is not unique.
  test('end at once, and say why, when the host cannot let them run', async () => {
    const result = await runChild(
      `import { execFileSync } from 'node:child_process';
      import { readFileSync } from 'node:fs';
      const limit = (bytes) =>
        execFileSync('prlimit', ['--pid=' + process.pid, '--as=' + bytes + ':unlimited']);
      ${BOOT}
      const snapshot = await vm.snapshot();
      // Node must not need memory meanwhile: what it runs then has run before.
      const before = await snapshot.fork();
      await before.ready;
      await before.close();
      const fork = await snapshot.fork({ start: 'on-demand' });
      const [, kilobytes] = /VmSize:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'));
      // Less than it has: whatever is mapped from now on does not fit.
      limit(kilobytes * 1024 - 64 * MiB);
      const error = await fork.ready.catch((error) => error);
      limit('unlimited');
      console.log(error.code, (await fork.exited).reason, error.message);
      for (const open of [fork, snapshot, vm]) await open.close();`,
      { execArgv: ['--single-threaded', '--no-opt', '--min-semi-space-size=16'] },
    );

    expect(result).toMatchObject({ exitCode: 0, signal: null, stderr: '' });
    expect(result.stdout).toMatch(/^ERR_VM_EXITED host-error .*Cannot allocate memory/);
  });

  test('end with the process, whatever they are at', async () => {
    const result = await runChild(
      `${BOOT}
      const snapshot = await vm.snapshot();
      await snapshot.prewarm(2);
      const [one, two] = await snapshot.forkMany(2);
      one.exec('while :; do :; done').catch(() => {});
      two.reset().catch(() => {});
      vm.snapshot().catch(() => {});
      snapshot.forkMany(4).catch(() => {});
      setTimeout(() => process.exit(7), 5);`,
    );

    expect(result).toMatchObject({ exitCode: 7, signal: null, stdout: '', stderr: '' });
  });

  // Answers that met an environment on its way out ended the process.
  test('end with workers that are terminated while answers come in', async () => {
    const entry = new URL('../../dist/index.js', import.meta.url).href;
    const module = `data:text/javascript,${encodeURIComponent(`
      import { Snapshot } from ${JSON.stringify(entry)};
      import { parentPort, workerData } from 'node:worker_threads';
      const snapshot = await Snapshot.load(workerData);
      await snapshot.prewarm(1);
      parentPort.postMessage('running');
      for (;;) await (await snapshot.fork()).close();`)}`;
    const result = await runChild(
      `import { mkdtemp, rm } from 'node:fs/promises';
      import { tmpdir } from 'node:os';
      import { Worker } from 'node:worker_threads';
      const parent = await mkdtemp(tmpdir() + '/forklet-workers-');
      const directory = parent + '/snapshot';
      ${BOOT}
      const snapshot = await vm.snapshot();
      await snapshot.save(directory);
      await snapshot.close();
      await vm.close();
      for (let i = 0; i < (patience(1) > 1 ? 5 : 60); i++) {
        const worker = new Worker(new URL(process.env.WORKER), { workerData: directory });
        await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
        await new Promise((resolve) => setTimeout(resolve, i));
        await worker.terminate();
      }
      await rm(parent, { recursive: true });
      console.log('over');`,
      { env: { WORKER: module } },
    );

    expect(result).toMatchObject({ exitCode: 0, signal: null, stdout: 'over\n', stderr: '' });
  });

  test('end with a worker that is terminated, and leave no thread', async () => {
    const entry = new URL('../../dist/index.js', import.meta.url).href;
    const module = `data:text/javascript,${encodeURIComponent(`
      import { Vm } from ${JSON.stringify(entry)};
      import { parentPort } from 'node:worker_threads';
      ${BOOT}
      const snapshot = await vm.snapshot();
      await snapshot.prewarm(1);
      const fork = await snapshot.fork();
      parentPort.postMessage('running');
      for (;;) await (await snapshot.fork()).close();`)}`;
    const result = await runChild(
      `${counting}
      import { Worker } from 'node:worker_threads';
      const run = async () => {
        const worker = new Worker(new URL(process.env.WORKER));
        await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
        await sleep(50);
        await worker.terminate();
        await sleep(300);
      };
      await run();
      const before = [threads(), guestMappings()];
      await run();
      console.log(JSON.stringify([before, [threads(), guestMappings()]]));`,
      { env: { WORKER: module } },
    );

    expect(result).toMatchObject({ exitCode: 0, signal: null, stderr: '' });
    const [before, after] = JSON.parse(result.stdout);
    expect(after).toEqual(before);
  });
});
