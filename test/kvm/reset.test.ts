import { setTimeout as delay } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import type { ExecProcess, Vm } from '../../lib/index.js';
import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

/** Has a test/kvm/programs/remap.c do something; what it then finds. */
async function ask(remap: ExecProcess, command: string): Promise<number> {
  remap.stdin.write(command);
  const { value } = await remap.lines().next();
  return Number(value);
}

describe.runIf(hasKvm)('a reset', () => {
  let remap: string;
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.writeFile('/remap', compileGuestProgram('remap'), { mode: 0o755 });
    const running = vm.exec(['/remap']);
    expect(await ask(running, 'p')).toBe(65);
    running.catch(() => {});
    remap = (await running.started).id;
    await vm.fs.writeFile('/tmp/kept', 'kept\n');
  });
  let fork: Vm;

  beforeAll(async () => {
    fork = await shared.snapshot.fork();
  });

  afterAll(async () => {
    await fork.close();
  });

  const output = async (command: string): Promise<string> =>
    (await fork.exec(command, { check: true })).stdout.trim();

  test('undoes what was done since the snapshot', async () => {
    const { id } = fork;
    await fork.fs.writeFile('/tmp/gone', 'gone');
    await fork.fs.writeFile('/tmp/kept', 'changed');
    const left = fork.exec('sleep 987');
    left.catch(() => {});
    await left.started;
    await fork.reset();

    await expect(left).rejects.toMatchObject({ code: 'ERR_VM_RESET' });
    expect(fork.id).toBe(id);
    expect(await output('cat /tmp/kept; ls /tmp; ps | grep -c "[s]leep 987" || true')).toBe(
      'kept\nkept\n0',
    );
    expect((await fork.processes()).map(({ id }) => id)).toEqual([remap]);
  });

  test('makes another machine each time', async () => {
    const look = 'od -An -tx8 -N8 /dev/urandom; cat /run/forklet/generation';
    const seen = [await output(look)];
    for (let i = 0; i < 2; i++) {
      await fork.reset();
      seen.push(await output(look));
    }
    const numbers = seen.flatMap((text) => text.split(/\s+/));

    expect(new Set(numbers).size).toBe(6);
  });

  // KVM once went on with translations of page tables that were no longer the guest's.
  test('undoes what was mapped since the snapshot', async () => {
    const running = fork.attach(remap);
    running.catch(() => {});
    expect(await ask(running, 'p')).toBe(65);
    expect(await ask(running, 'm')).toBe(0x7f);
    await fork.reset();

    expect(await ask(fork.attach(remap), 'p')).toBe(65);
  });

  test('works at any moment: in a command’s output, in a file, twice at once', async () => {
    const flood = fork.exec('while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done');
    flood.stdout.resume();
    flood.catch(() => {});
    await flood.started;
    const writing = fork.fs.writeFile('/tmp/large', Buffer.alloc(4 * 1024 * 1024));
    writing.catch(() => {});
    await delay(50);
    await Promise.all([fork.reset(), fork.reset()]);

    await expect(flood).rejects.toMatchObject({ code: 'ERR_VM_RESET' });
    await expect(writing).rejects.toMatchObject({ code: 'ERR_VM_RESET' });
    expect(await output('ls /tmp')).toBe('kept');
  });

  test('goes back to any snapshot of that size, also of the VM itself', async () => {
    await fork.fs.writeFile('/tmp/later', '');
    await using later = await fork.snapshot();
    await fork.reset();
    expect(await output('ls /tmp')).toBe('kept');
    await fork.reset(later);
    expect(await output('ls /tmp')).toBe('kept\nlater');
    await fork.reset();
    expect(await output('ls /tmp')).toBe('kept');
  });

  test('of a paused VM lets it run', async () => {
    await fork.pause();
    await fork.reset();

    expect(fork.state).toBe('running');
    expect(await output('echo on')).toBe('on');
  });

  test('of a booted VM needs a snapshot', async () => {
    await expect(shared.vm.reset()).rejects.toMatchObject({ code: 'ERR_VM_NO_SNAPSHOT' });
    await shared.vm.fs.writeFile('/tmp/gone', '');
    await shared.vm.reset(shared.snapshot);

    expect((await shared.vm.exec('ls /tmp')).stdout).toBe('kept\n');
  });

  test('leaves nothing behind, however often', async () => {
    await fork.reset();
    await output('true');
    const before = await settledCounts();
    for (let i = 0; i < 5; i++) {
      await fork.reset();
      await fork.ready;
    }

    expect(await settledCounts()).toEqual(before);
  });

  test('does not bring back a VM that has ended', async () => {
    const ending = await shared.snapshot.fork();
    ending.exec('poweroff -f').catch(() => {});
    await ending.exited;

    await expect(ending.reset()).rejects.toMatchObject({ code: 'ERR_VM_EXITED' });
    await ending.close();
  });
});
