import { describe, expect, test } from 'vitest';

import type { ExecProcess, Vm } from '../../lib/index.js';
import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

const FORKS = 32;
const CLOCK_SLACK_MS = 50;

interface Testimony {
  readonly now: bigint;
  readonly backwards: number;
  readonly changed: boolean;
  readonly generation: string;
}

/** Takes the streams of a witness; each call asks it once more. */
function interview(handle: ExecProcess): () => Promise<Testimony> {
  const lines = handle.lines();
  return async () => {
    handle.stdin.write('?\n');
    const { value } = await lines.next();
    const [now = '', backwards, changed, generation = ''] = String(value).split(' ');
    return { now: BigInt(now), backwards: Number(backwards), changed: changed === '1', generation };
  };
}

/** What test/kvm/programs/identity.c prints, and when it was asked. */
async function identityOf(vm: Vm): Promise<{
  readonly facts: ReadonlyMap<string, string>;
  readonly earliest: number;
  readonly latest: number;
}> {
  const earliest = Date.now() - CLOCK_SLACK_MS;
  const { stdout } = await vm.exec(['/tmp/identity'], { check: true });
  const latest = Date.now() + CLOCK_SLACK_MS;
  const facts = new Map(
    stdout
      .trim()
      .split('\n')
      .map((line) => line.split(' ') as [string, string]),
  );
  return { facts, earliest, latest };
}

describe.runIf(hasKvm)('every fork of a snapshot', () => {
  let witness: string;
  let ask: () => Promise<Testimony>;
  let before: Testimony;
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.writeFile('/tmp/identity', compileGuestProgram('identity'), { mode: 0o755 });
    await vm.fs.writeFile('/tmp/witness', compileGuestProgram('witness'), { mode: 0o755 });
    const handle = vm.exec(['/tmp/witness']);
    ask = interview(handle);
    before = await ask();
    handle.exited.catch(() => {});
    witness = (await handle.started).id;
  });

  test(`draws numbers of its own and knows the time, in ${FORKS} of them at once`, {
    timeout: patience(300_000),
  }, async () => {
    const forks = await shared.snapshot.forkMany(FORKS, { timeoutMs: patience(200_000) });
    const identities = await Promise.all(forks.map(identityOf));
    await Promise.all(forks.map((fork) => fork.close()));

    for (const name of ['at-random', 'getrandom', 'urandom', 'uuid']) {
      const values = identities.map(({ facts }) => facts.get(name));
      expect(values).not.toContain(undefined);
      expect(new Set(values).size, name).toBe(FORKS);
    }
    for (const { facts, earliest, latest } of identities) {
      const realtimeMs = Number(BigInt(facts.get('realtime') ?? '') / 1_000_000n);
      expect(realtimeMs).toBeGreaterThanOrEqual(earliest);
      expect(realtimeMs).toBeLessThanOrEqual(latest);
    }
  });

  test('lets a program that ran on see that it was forked, and no time that goes back', async () => {
    const forks = await shared.snapshot.forkMany(4, { timeoutMs: patience(100_000) });
    const ofForks = await Promise.all(forks.map((fork) => interview(fork.attach(witness))()));
    const later = await forks[0]?.fork();
    if (later === undefined) throw new Error('no fork');
    const ofFork = await interview(later.attach(witness))();
    await Promise.all([later, ...forks].map((fork) => fork.close()));

    const all = [...ofForks, ofFork];
    expect(before).toMatchObject({ backwards: 0, changed: false });
    expect(all.map(({ changed }) => changed)).toEqual(all.map(() => true));
    expect(all.map(({ backwards }) => backwards)).toEqual(all.map(() => 0));
    for (const { now } of ofForks) expect(now).toBeGreaterThan(before.now);
    expect(ofFork.now).toBeGreaterThan(ofForks[0]?.now ?? 0n);
    const generations = [before, ...all].map(({ generation }) => generation);
    expect(new Set(generations).size).toBe(generations.length);
  });

  test('is seen by nobody in the VM that was frozen, whose clock goes on as well', async () => {
    const now = await ask();

    expect(now).toMatchObject({ backwards: 0, changed: false, generation: before.generation });
    expect(now.now).toBeGreaterThan(before.now);
  });

  test('is stopped when it does not confirm in time that it is unique', async () => {
    await using fork = await shared.snapshot.fork();
    await fork.fs.mkdir('/etc/forklet/fork.d', { recursive: true });
    const hook = '#!/bin/sh\nexec sleep 1000\n';
    await fork.fs.writeFile('/etc/forklet/fork.d/10-hangs', hook, { mode: 0o755 });
    await using late = await fork.fork({ timeoutMs: patience(2000) });

    await expect(late.fs.readFile('/etc/passwd')).rejects.toMatchObject({
      code: 'ERR_VM_NOT_UNIQUE',
    });
    await expect(late.exited).resolves.toMatchObject({ reason: 'not-unique' });
  });
});

describe.runIf(hasKvm)('a fork whose agent cannot reseed the kernel', () => {
  // The agent opens /dev/urandom when it first parks, and a plain file takes no entropy.
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.rm('/dev/urandom');
    await vm.fs.writeFile('/dev/urandom', '');
  });

  test('is stopped before anything is sent to it, and its parent goes on', async () => {
    await using fork = await shared.snapshot.fork();

    await expect(fork.exec('true')).rejects.toMatchObject({
      code: 'ERR_VM_NOT_UNIQUE',
      message: expect.stringMatching(/random/),
    });
    await expect(fork.ready).rejects.toMatchObject({ code: 'ERR_VM_NOT_UNIQUE' });
    await expect(fork.exited).resolves.toMatchObject({ reason: 'not-unique' });
    expect((await shared.vm.exec('echo on')).stdout).toBe('on\n');
  });
});
