import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { runChild } from '../helpers/child.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { print, spin, TinyKernels } from '../helpers/tiny-kernel.js';

// The guests here run for ever in a few instructions: the harshest moment for a process to end is
// while a vCPU is inside the guest.

let kernels: TinyKernels;
let env: Record<string, string>;

beforeAll(() => {
  kernels = new TinyKernels();
  env = { SPINNING_KERNEL: kernels.write(print('spinning'), spin) };
});

afterAll(() => {
  kernels.remove();
});

const spinning = `
const creation = Vm.create({ kernel: process.env.SPINNING_KERNEL });
creation.catch(() => {});
await new Promise((resolve) => setTimeout(resolve, patience(300)));
`;

describe.runIf(hasKvm)('with a guest running, the process ends at once and cleanly', () => {
  test('by process.exit()', async () => {
    const result = await runChild(`${spinning} console.log('bye'); process.exit(7);`, { env });

    expect(result).toMatchObject({ exitCode: 7, signal: null, stdout: 'bye\n', stderr: '' });
    expect(result.durationMs).toBeLessThan(patience(10_000));
  });

  test('by an uncaught exception', async () => {
    const result = await runChild(`${spinning} throw new Error('mine');`, { env });

    expect(result).toMatchObject({ exitCode: 1, signal: null });
    expect(result.stderr).toContain('Error: mine');
  });

  test('by process.exit() inside a callback of the VM', async () => {
    const result = await runChild(
      `Vm.create({ kernel: process.env.SPINNING_KERNEL, bootTimeoutMs: patience(200) })
        .catch((error) => { console.log(error.code); process.exit(3); });`,
      { env },
    );

    expect(result).toMatchObject({ exitCode: 3, signal: null, stdout: 'ERR_VM_BOOT_TIMEOUT\n' });
  });

  test('by a signal', async () => {
    const result = await runChild(`${spinning} process.kill(process.pid, 'SIGTERM');`, { env });

    expect(result).toMatchObject({ exitCode: null, signal: 'SIGTERM' });
  });

  test('by process.abort(), with the signal that it asked for', async () => {
    const result = await runChild(`${spinning} process.abort();`, { env });

    expect(result).toMatchObject({ exitCode: null, signal: 'SIGABRT' });
  });

  test('while VMs are being created and closed', async () => {
    const result = await runChild(
      `for (let i = 0; i < 4; i++) {
        const controller = new AbortController();
        const { signal } = controller;
        Vm.create({ kernel: process.env.SPINNING_KERNEL, signal }).catch(() => {});
        setTimeout(() => controller.abort(), patience(40 + 20 * i));
      }
      setTimeout(() => process.exit(5), patience(90));`,
      { env },
    );

    expect(result).toMatchObject({ exitCode: 5, signal: null, stderr: '' });
  });
});

describe.runIf(hasKvm)('with a guest running in a worker', () => {
  const worker = `
    import { Worker } from 'node:worker_threads';
    import { readdirSync } from 'node:fs';
    const threads = () => readdirSync('/proc/self/task').length;
    const run = async () => {
      const worker = new Worker(new URL(process.env.WORKER), { eval: false });
      await new Promise((resolve) => worker.once('message', resolve));
      return worker;
    };`;

  const workerModule = (source: string): string =>
    `data:text/javascript,${encodeURIComponent(source)}`;

  let module: string;

  beforeAll(() => {
    const entry = new URL('../../dist/index.js', import.meta.url).href;
    module = workerModule(`
      import { Vm } from ${JSON.stringify(entry)};
      import { parentPort } from 'node:worker_threads';
      Vm.create({ kernel: process.env.SPINNING_KERNEL }).catch(() => {});
      setTimeout(() => parentPort.postMessage('running'), ${patience(300)});
      setInterval(() => {}, 1000);`);
  });

  test('terminate() ends it, and the process goes on with all threads gone', async () => {
    const result = await runChild(
      `${worker}
      await (await run()).terminate();
      const before = threads();
      for (let i = 0; i < 3; i++) await (await run()).terminate();
      await new Promise((resolve) => setTimeout(resolve, patience(200)));
      console.log(threads() - before);`,
      { env: { ...env, WORKER: module } },
    );

    expect(result).toMatchObject({ exitCode: 0, signal: null, stdout: '0\n', stderr: '' });
  });

  test('process.exit() of the main thread ends both', async () => {
    const result = await runChild(`${worker} await run(); process.exit(4);`, {
      env: { ...env, WORKER: module },
    });

    expect(result).toMatchObject({ exitCode: 4, signal: null, stderr: '' });
  });

  test('process.exit() of the worker ends the worker alone', async () => {
    const entry = new URL('../../dist/index.js', import.meta.url).href;
    const exiting = workerModule(`
      import { Vm } from ${JSON.stringify(entry)};
      Vm.create({ kernel: process.env.SPINNING_KERNEL }).catch(() => {});
      setTimeout(() => process.exit(9), ${patience(300)});`);
    const result = await runChild(
      `import { Worker } from 'node:worker_threads';
      const worker = new Worker(new URL(process.env.WORKER));
      worker.once('exit', (code) => console.log('worker', code));`,
      { env: { ...env, WORKER: exiting } },
    );

    expect(result).toMatchObject({ exitCode: 0, stdout: 'worker 9\n', stderr: '' });
  });
});

describe.runIf(hasKvm)('without descriptors to spare', () => {
  test('a boot fails cleanly at whichever step the last one is gone', async () => {
    const result = await runChild(
      `import { closeSync, openSync, readdirSync } from 'node:fs';
      const create = () => Vm.create({ kernel: process.env.SPINNING_KERNEL, bootTimeoutMs: patience(300) })
        .then(() => 'booted', ({ code }) => code);
      await create();
      const before = readdirSync('/proc/self/fd').length;
      const held = [];
      try { for (;;) held.push(openSync('/dev/null')); } catch {}
      const codes = [];
      for (let i = 0; i < 100 && codes.at(-1) !== 'ERR_VM_BOOT_TIMEOUT'; i++) {
        codes.push(await create());
        closeSync(held.pop());
      }
      for (const fd of held) closeSync(fd);
      console.log(JSON.stringify({ codes, left: readdirSync('/proc/self/fd').length - before }));`,
      { env },
    );

    expect(result).toMatchObject({ exitCode: 0, signal: null, stderr: '' });
    const { codes, left } = JSON.parse(result.stdout);
    expect(codes.at(-1)).toBe('ERR_VM_BOOT_TIMEOUT');
    expect(codes).toEqual(expect.arrayContaining(['ERR_VM_KVM', 'ERR_VM_SYSTEM']));
    expect(codes.filter((code: string) => !/^ERR_VM_/.test(code))).toEqual([]);
    expect(codes).not.toContain('ERR_VM_INTERNAL');
    expect(left).toBe(0);
  });
});

describe('importing', () => {
  test('loads no addon, and works where there is none', async () => {
    const result = await runChild(`
      Object.defineProperty(process, 'platform', { value: 'darwin' });
      const error = await Vm.create().catch((error) => error);
      const report = await doctor();
      console.log(error.code, error.message);
      console.log(report.ok, report.backend, report.checks.map(({ name }) => name).join());
      console.log(process.report.getReport().sharedObjects.some((name) => name.includes('forklet')));
    `);

    expect(result.stderr).toBe('');
    expect(result.stdout).toMatch(
      /^ERR_VM_KVM_UNAVAILABLE forklet runs VMs on Linux on x86-64 only; this is darwin on \w+\nfalse none platform\nfalse\n$/,
    );
  });

  test('does not keep the process alive', async () => {
    const result = await runChild(`console.log(MiB)`);

    expect(result).toMatchObject({ exitCode: 0, stdout: '1048576\n' });
  });
});
