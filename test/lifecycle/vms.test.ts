import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { runChild } from '../helpers/child.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { print, spin, TinyKernels } from '../helpers/tiny-kernel.js';

let kernels: TinyKernels;
let env: Record<string, string>;

beforeAll(() => {
  kernels = new TinyKernels();
  env = { SPINNING_KERNEL: kernels.write(print('spinning'), spin) };
});

afterAll(() => {
  kernels.remove();
});

const counting = `
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
// libuv opens /dev/null for its own use with the first stream.
void process.stdout;
// Their targets, so that a failure says which one is left.
const descriptors = () => readdirSync('/proc/self/fd').flatMap((fd) => {
  try { return [readlinkSync('/proc/self/fd/' + fd).replace(/\\d+/g, 'N')]; } catch { return []; }
});
const count = () => ({
  threads: readdirSync('/proc/self/task').length,
  descriptors: descriptors().sort(),
  mappings: readFileSync('/proc/self/maps', 'utf8').split('\\n').filter((line) => /memfd:|kvm/.test(line)).length,
});
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, patience(ms)));
const closedEarly = async () => {
  const controller = new AbortController();
  const creation = Vm.create({ kernel: process.env.SPINNING_KERNEL, signal: controller.signal });
  await sleep(60);
  controller.abort();
  await creation.catch((error) => { if (error.name !== 'AbortError') throw error; });
};
`;

describe.runIf(hasKvm)('in one process', () => {
  test('ten VMs, three of them booted and seven closed in mid-boot, leave nothing behind', {
    timeout: patience(400_000),
  }, async () => {
    const result = await runChild(
      `${counting}
        // Threads that Node and the library start once are not what is counted.
        await closedEarly();
        await sleep(200);
        const before = count();
        // One after the other, since each takes a processor for itself; then all three run.
        const vms = [];
        for (let i = 0; i < 3; i++) {
          await closedEarly();
          vms.push(await Vm.create({ bootTimeoutMs: patience(200_000) }));
        }
        const names = await Promise.all(vms.map(async (vm) => (await vm.exec(['hostname'])).stdout.trim()));
        await Promise.all(vms.map((vm) => vm.close()));
        for (let i = 0; i < 4; i++) await closedEarly();
        await sleep(500);
        console.log(JSON.stringify({ names, before, after: count() }));`,
      { env },
    );

    expect(result.stderr).toBe('');
    const { names, before, after } = JSON.parse(result.stdout);
    expect(names).toEqual(['forklet', 'forklet', 'forklet']);
    expect(after).toEqual(before);
  });

  test('a handle that is collected without close() closes its VM, with a warning', async () => {
    const result = await runChild(
      `${counting}
      await closedEarly();
      await sleep(200);
      const before = count();
      process.on('warning', ({ name, code, message }) => console.log(JSON.stringify({ name, code, message })));
      let vm = await Vm.create({ bootTimeoutMs: patience(200_000) });
      const { id } = vm;
      const { exited } = vm;
      const held = count();
      vm = undefined;
      for (let i = 0; i < 200 && count().mappings > before.mappings; i++) {
        globalThis.gc();
        await sleep(20);
      }
      const { reason } = await exited;
      await sleep(200);
      console.log(JSON.stringify({ id, reason, before, held, after: count() }));`,
      { env, execArgv: ['--expose-gc'] },
    );

    const [warning, state] = result.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(warning).toMatchObject({ name: 'ForkletWarning', code: 'FORKLET_VM_NOT_CLOSED' });
    expect(warning.message).toContain(state.id);
    expect(state.reason).toBe('closed');
    expect(state.held.threads).toBeGreaterThan(state.before.threads);
    expect(state.after).toEqual(state.before);
  });

  test('an idle VM does not keep the process alive, work under way does, and so does ref()', async () => {
    const result = await runChild(`
      const vm = await Vm.create({ bootTimeoutMs: patience(200_000) });
      // Nobody awaits it: the pending operation alone holds the process.
      vm.exec('sleep 1; echo done').then(({ stdout }) => {
        process.stdout.write(stdout);
        vm.ref();
        setTimeout(() => {
          console.log('held');
          vm.unref();
        }, 300).unref();
      });
    `);

    expect(result).toMatchObject({ exitCode: 0, signal: null, stdout: 'done\nheld\n', stderr: '' });
  });
});
