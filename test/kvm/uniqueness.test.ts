import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import type { ExecProcess, Snapshot, Vm } from '../../lib/index.js';
import { mapFewAtOnce } from '../helpers/few-at-once.js';
import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

const FORKS = 32;
const CLOCK_SLACK_MS = 50;

/** A guest's CLOCK_REALTIME, and the host's before the guest was asked and after it answered. */
interface Reading {
  readonly realtimeNs: bigint;
  readonly earliestMs: number;
  readonly latestMs: number;
}

interface Testimony extends Reading {
  readonly now: bigint;
  readonly backwards: number;
  readonly changed: boolean;
  readonly generation: string;
}

/** Takes the streams of test/kvm/programs/witness.c; each call asks it once more. */
function interview(handle: ExecProcess): () => Promise<Testimony> {
  const lines = handle.lines();
  return async () => {
    const earliestMs = Date.now();
    handle.stdin.write('?\n');
    const { value } = await lines.next();
    const latestMs = Date.now();
    const [now = '', backwards, changed, realtime = '', generation = ''] = String(value).split(' ');
    return {
      now: BigInt(now),
      backwards: Number(backwards),
      changed: changed === '1',
      generation,
      realtimeNs: BigInt(realtime),
      earliestMs,
      latestMs,
    };
  };
}

/** What test/kvm/programs/identity.c prints. */
async function identityOf(vm: Vm): Promise<Reading & { facts: ReadonlyMap<string, string> }> {
  const earliestMs = Date.now();
  const { stdout } = await vm.exec(['/tmp/identity'], { check: true });
  const latestMs = Date.now();
  const lines = stdout.trim().split('\n');
  const facts = new Map(lines.map((line) => line.split(' ') as [string, string]));
  return { facts, realtimeNs: BigInt(facts.get('realtime') ?? ''), earliestMs, latestMs };
}

function expectRightTime({ realtimeNs, earliestMs, latestMs }: Reading): void {
  const realtimeMs = Number(realtimeNs / 1_000_000n);
  expect(realtimeMs).toBeGreaterThanOrEqual(earliestMs - CLOCK_SLACK_MS);
  expect(realtimeMs).toBeLessThanOrEqual(latestMs + CLOCK_SLACK_MS);
}

describe.runIf(hasKvm)('every fork of a snapshot', () => {
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.writeFile('/tmp/identity', compileGuestProgram('identity'), { mode: 0o755 });
    await vm.fs.writeFile('/tmp/witness', compileGuestProgram('witness'), { mode: 0o755 });
  });

  test(`draws numbers of its own and knows the time, in ${FORKS} of them`, async () => {
    const forks = await shared.snapshot.forkMany(FORKS, { start: 'on-demand' });
    const identities = await mapFewAtOnce(forks, async (fork) => {
      await using vm = fork;
      return await identityOf(vm);
    });

    for (const name of ['at-random', 'getrandom', 'urandom', 'uuid']) {
      const values = identities.map(({ facts }) => facts.get(name));
      expect(values).not.toContain(undefined);
      expect(new Set(values).size, name).toBe(FORKS);
    }
    for (const identity of identities) expectRightTime(identity);
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

  describe('with a program that runs on', () => {
    let witness: string;
    let ask: () => Promise<Testimony>;
    let before: Testimony;
    let snapshot: Snapshot | undefined;
    beforeAll(async () => {
      const handle = shared.vm.exec(['/tmp/witness']);
      ask = interview(handle);
      before = await ask();
      handle.exited.catch(() => {});
      witness = (await handle.started).id;
      snapshot = await shared.vm.snapshot();
    });
    afterAll(() => snapshot?.close());

    test('lets it see that it was forked, the right time, and no time that goes back', async () => {
      const forks = (await snapshot?.forkMany(4, { start: 'on-demand' })) ?? [];
      const ofForks = await mapFewAtOnce(forks, async (fork) => {
        const askFork = interview(fork.attach(witness));
        // The first answer waits for the fork to be ready. The second comes at once, which leaves
        // little room for a wrong time.
        return [await askFork(), await askFork()] as const;
      });
      const later = await forks[0]?.fork();
      if (later === undefined) throw new Error('no fork');
      const ofFork = await interview(later.attach(witness))();
      await Promise.all([later, ...forks].map((fork) => fork.close()));

      const all = [...ofForks.flat(), ofFork];
      expect(before).toMatchObject({ backwards: 0, changed: false });
      for (const testimony of all) {
        expect(testimony).toMatchObject({ backwards: 0, changed: true });
        expectRightTime(testimony);
      }
      for (const [{ now }] of ofForks) expect(now).toBeGreaterThan(before.now);
      expect(ofFork.now).toBeGreaterThan(ofForks[0]?.[0].now ?? 0n);
      const generations = [before, ...ofForks.map(([first]) => first), ofFork].map(
        ({ generation }) => generation,
      );
      expect(new Set(generations).size).toBe(generations.length);
    });

    test('is seen by nobody in the VM that was frozen, whose clock goes on as well', async () => {
      const now = await ask();

      expect(now).toMatchObject({ backwards: 0, changed: false, generation: before.generation });
      expect(now.now).toBeGreaterThan(before.now);
    });
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
