import { setTimeout as delay } from 'node:timers/promises';

import { describe, expect, test } from 'vitest';

import type { Vm } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

const HOOK = `#!/bin/sh
echo "$FORKLET_GENERATION" >> /tmp/hooked
[ ! -e /tmp/refuse ]
`;

async function closeAll(vms: readonly Vm[]): Promise<void> {
  await Promise.all(vms.map((vm) => vm.close()));
}

const output = async (vm: Vm, command: string): Promise<string> =>
  (await vm.exec(command, { check: true })).stdout.trim();

describe.runIf(hasKvm)('forks of a snapshot', () => {
  let counter: string;
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.mkdir('/etc/forklet/fork.d', { recursive: true });
    await vm.fs.writeFile('/etc/forklet/fork.d/10-note', HOOK, { mode: 0o755 });
    await vm.fs.writeFile('/tmp/shared', 'from the parent');
    const handle = vm.exec('i=0; while read line; do i=$((i + 1)); echo "$i $line"; done');
    handle.stdin.write('parent\n');
    const lines = handle.lines();
    await lines.next();
    handle.exited.catch(() => {});
    counter = (await handle.started).id;
  });

  test('have their parent’s memory, files and processes, and their own from then on', async () => {
    const [one, two] = await shared.snapshot.forkMany(2);
    if (one === undefined || two === undefined) throw new Error('no forks');
    await one.fs.writeFile('/tmp/shared', 'from one');

    expect(await one.fs.readFile('/tmp/shared', 'utf8')).toBe('from one');
    expect(await two.fs.readFile('/tmp/shared', 'utf8')).toBe('from the parent');
    expect(await shared.vm.fs.readFile('/tmp/shared', 'utf8')).toBe('from the parent');
    expect(one.parentId).toBe(shared.snapshot.id);
    await closeAll([one, two]);
  });

  test('go on with a command where it was, each for itself', async () => {
    const forks = await shared.snapshot.forkMany(2);
    const said = await Promise.all(
      forks.map(async (fork, i) => {
        expect(await fork.processes()).toMatchObject([{ id: counter }]);
        const attached = fork.attach(counter);
        attached.stdin.end(`fork ${i}\n`);
        return (await attached).stdout;
      }),
    );

    expect(said).toEqual(['2 fork 0\n', '2 fork 1\n']);
    expect(await shared.vm.processes()).toHaveLength(1);
    await closeAll(forks);
  });

  test('are machines of their own: randomness, generation, names', async () => {
    const forks = await shared.snapshot.forkMany(3);
    const look =
      'od -An -tx8 -N16 /dev/urandom; cat /proc/sys/kernel/random/uuid; cat /run/forklet/generation';
    const seen = await Promise.all([shared.vm, ...forks].map((vm) => output(vm, look)));
    const numbers = seen.flatMap((text) => text.split(/\s+/));

    expect(numbers).toHaveLength(4 * 4);
    expect(new Set(numbers).size).toBe(numbers.length);
    await closeAll(forks);
  });

  test('have the name that they are given, and otherwise their parent’s', async () => {
    await using named = await shared.snapshot.fork({ hostname: 'twin' });
    await using same = await shared.snapshot.fork();

    expect(await output(named, 'hostname')).toBe('twin');
    expect(await output(same, 'hostname')).toBe('forklet');
  });

  test('know what time it is', async () => {
    await delay(3000);
    await using fork = await shared.snapshot.fork();
    const before = Date.now() / 1000;
    const there = Number(await output(fork, 'date +%s'));
    const after = Date.now() / 1000;

    expect(there).toBeGreaterThanOrEqual(Math.floor(before) - 1);
    expect(there).toBeLessThanOrEqual(after + 1);
  });

  test('run their hooks before anything else, once', async () => {
    await using fork = await shared.snapshot.fork();
    const generation = await output(fork, 'cat /run/forklet/generation');

    expect(await output(fork, 'cat /tmp/hooked')).toBe(generation);
  });

  test('whose hook fails are stopped', async () => {
    await shared.vm.fs.writeFile('/tmp/refuse', '');
    const fork = await shared.vm.fork();

    await expect(fork.exec('true')).rejects.toMatchObject({ code: 'ERR_VM_NOT_UNIQUE' });
    await expect(fork.ready).rejects.toMatchObject({ code: 'ERR_VM_NOT_UNIQUE' });
    await expect(fork.exited).resolves.toMatchObject({ reason: 'not-unique' });
    await fork.close();
    await shared.vm.fs.rm('/tmp/refuse');
  });

  test('on demand do nothing until they are asked', async () => {
    await using fork = await shared.snapshot.fork({ start: 'on-demand' });
    await delay(500);
    const { exits } = await fork.stats();

    expect(Object.values(exits).reduce((sum, count) => sum + count, 0)).toBe(0);
    expect(await output(fork, 'echo asked')).toBe('asked');
  });

  test('can be forked themselves, and those again', async () => {
    await using one = await shared.snapshot.fork();
    await one.fs.writeFile('/tmp/depth', '1');
    await using two = await one.fork();
    await two.fs.writeFile('/tmp/depth', '2');
    await using three = await two.fork();

    expect(await three.fs.readFile('/tmp/depth', 'utf8')).toBe('2');
    expect(await one.fs.readFile('/tmp/depth', 'utf8')).toBe('1');
    expect(three.parentId).toBe(two.id);
  });

  test('cost what they write, and say from what they were made', async () => {
    await shared.snapshot.prewarm(2);
    await using warm = await shared.snapshot.fork({ pool: 'require' });
    await using cold = await shared.snapshot.fork({ pool: 'never' });
    await shared.snapshot.prewarm(0);

    expect(warm.timings).toMatchObject({ pool: 'fork' });
    expect(cold.timings).toMatchObject({ pool: 'none' });
    expect(await output(warm, 'echo warm')).toBe('warm');
    expect(await output(cold, 'echo cold')).toBe('cold');
  });

  test('outlive the snapshot’s handle', async () => {
    const snapshot = await shared.vm.snapshot();
    const fork = await snapshot.fork();
    await snapshot.close();

    expect(await output(fork, 'echo alive')).toBe('alive');
    await fork.close();
  });

  test('leave nothing, whatever ends them', async () => {
    await closeAll(await shared.snapshot.forkMany(2));
    const before = await settledCounts();
    const forks = await shared.snapshot.forkMany(4);
    const [one, two, three] = forks;
    one?.exec('sleep 1000').catch(() => {});
    two?.exec('poweroff -f').catch(() => {});
    await three?.pause();
    await two?.exited;
    await closeAll(forks);
    const abort = new AbortController();
    const aborted = Array.from({ length: 4 }, () => shared.snapshot.fork({ signal: abort.signal }));
    abort.abort();
    for (const outcome of await Promise.allSettled(aborted))
      expect(outcome.status).toBe('rejected');

    expect(await settledCounts()).toEqual(before);
  });
});

describe.runIf(hasKvm)('forks of a VM with two vCPUs', () => {
  const shared = sharedSnapshot(undefined, { vm: { vcpus: 2 } });

  test('run both, and are unique', async () => {
    const forks = await shared.snapshot.forkMany(2);
    const look = 'nproc; od -An -tx8 -N8 /dev/urandom';
    const seen = await Promise.all(forks.map((fork) => output(fork, look)));
    const [first, second] = seen.map((text) => text.split(/\s+/));

    expect(first?.[0]).toBe('2');
    expect(second?.[0]).toBe('2');
    expect(first?.[1]).not.toBe(second?.[1]);
    await closeAll(forks);
  });
});
