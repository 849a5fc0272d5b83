import diagnostics_channel from 'node:diagnostics_channel';
import { setTimeout as delay } from 'node:timers/promises';

import { describe, expect, test } from 'vitest';

import { type DiagnosticsMessage, MiB, Vm } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedVm } from '../helpers/shared-vm.js';

describe.runIf(hasKvm)('a snapshot of a running VM', () => {
  const shared = sharedVm();

  test('costs no copy the first time, and little later', async () => {
    const messages: DiagnosticsMessage[] = [];
    const listener = (message: unknown): void => void messages.push(message as DiagnosticsMessage);
    diagnostics_channel.subscribe('forklet:snapshot', listener);
    await using first = await shared.vm.snapshot({ label: 'first' });
    await using second = await shared.vm.snapshot();
    diagnostics_channel.unsubscribe('forklet:snapshot', listener);

    expect(first).toMatchObject({
      parentId: shared.vm.id,
      label: 'first',
      memoryBytes: 128 * MiB,
    });
    expect(second.label).toBeUndefined();
    expect(messages[0]).toMatchObject({
      vmId: shared.vm.id,
      outcome: 'ok',
      result: { snapshotId: first.id, copiedPages: 0 },
    });
    const copied = messages[1]?.result?.['copiedPages'];
    expect(copied).toBeGreaterThan(0);
    expect(copied).toBeLessThan(4096);
  });

  test('loses and repeats nothing of what runs meanwhile', async () => {
    const command = 'i=0; while [ $i -lt 400 ]; do echo $i; i=$((i + 1)); done; cat';
    const handle = shared.vm.exec(command);
    const { stdin } = handle;
    const lines: string[] = [];
    const reading = (async () => {
      for await (const line of handle.lines()) lines.push(line);
    })();
    for (let i = 0; i < 3; i++) {
      await (await shared.vm.snapshot()).close();
      stdin.write(`snapshot ${i}\n`);
    }
    stdin.end();
    await reading;

    expect(lines).toEqual([
      ...Array.from({ length: 400 }, (_, i) => String(i)),
      'snapshot 0',
      'snapshot 1',
      'snapshot 2',
    ]);
  });

  test('lets a file that is being written go on', async () => {
    async function* contents(): AsyncGenerator<Buffer> {
      for (let i = 0; i < 8; i++) {
        yield Buffer.alloc(128 * 1024, i);
        await delay(20);
      }
    }
    const writing = shared.vm.fs.writeFile('/tmp/large', contents());
    await (await shared.vm.snapshot()).close();
    await writing;

    const read = await shared.vm.fs.readFile('/tmp/large');
    const expected = Buffer.concat(Array.from({ length: 8 }, (_, i) => Buffer.alloc(131_072, i)));
    expect(read.equals(expected)).toBe(true);
  });

  test('at a program that is not there is given up in time, and the VM goes on', async () => {
    await expect(shared.vm.snapshot({ at: 'program', timeoutMs: 500 })).rejects.toMatchObject({
      code: 'ERR_VM_PARK_TIMEOUT',
    });

    expect((await shared.vm.exec('echo on')).stdout).toBe('on\n');
  });

  test('is given up by its signal, and the VM goes on', async () => {
    const signal = AbortSignal.timeout(300);
    await expect(shared.vm.snapshot({ at: 'program', signal })).rejects.toMatchObject({
      name: 'AbortError',
    });

    await (await shared.vm.snapshot()).close();
    expect((await shared.vm.exec('echo on')).stdout).toBe('on\n');
  });

  test('leaves nothing when it is closed', async () => {
    await (await shared.vm.snapshot()).close();
    const before = await settledCounts();
    for (let i = 0; i < 3; i++) await (await shared.vm.snapshot()).close();

    expect(await settledCounts()).toEqual(before);
  });

  test('outlives its VM, and is the end of nothing', async () => {
    const vm = await Vm.create({ bootTimeoutMs: 115_000, memoryBytes: 64 * MiB });
    await using snapshot = await vm.snapshot();
    await vm.close();
    await using fork = await snapshot.fork();

    expect((await fork.exec('echo alive')).stdout).toBe('alive\n');
    await expect(vm.snapshot()).rejects.toMatchObject({ code: 'ERR_VM_CLOSED' });
  });
});

describe.runIf(hasKvm)('a paused VM', () => {
  const shared = sharedVm();

  test('stands still, and goes on where it was', async () => {
    const { vm } = shared;
    const handle = vm.exec('while :; do echo x; sleep 0.05; done');
    const lines = handle.lines();
    await lines.next();
    await vm.pause();
    expect(vm.state).toBe('paused');
    // What was under way when it stopped.
    await delay(100);
    const { exits: before } = await vm.stats();
    await delay(1000);
    const { exits: after } = await vm.stats();
    expect(after).toEqual(before);
    await expect(vm.exec('true')).rejects.toMatchObject({ code: 'ERR_VM_PAUSED' });

    await vm.resume();
    await lines.next();
    await lines.return?.();
    expect((await vm.exec('echo on')).stdout).toBe('on\n');
  });

  test('can be closed', async () => {
    await shared.vm.pause();
    await shared.vm.close();

    expect(shared.vm.state).toBe('closed');
  });
});
