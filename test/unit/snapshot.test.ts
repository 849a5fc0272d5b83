import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

import { MiB, type Snapshot, Vm } from '../../lib/index.js';
import { encodeFrame, FrameType, RenewStage, Tag } from '../../lib/internal/protocol/protocol.js';
import { type FakeNative, fakeNative } from '../helpers/fake-core.js';
import { renewedFrame, uint32 } from '../helpers/fake-vm.js';

vi.mock('../../lib/native.js', async (original) => {
  const { mockNative } = await import('../helpers/fake-core.js');
  return mockNative(await original());
});

let vm: Vm;
let fake: FakeNative;

beforeEach(async () => {
  vm = await Vm.create({ env: { NAME: 'value', GONE: undefined }, hostname: 'parent' });
  fake = fakeNative();
  fake.log.length = 0;
});

afterEach(async () => {
  fake.failing.clear();
  fake.hanging.clear();
  fake.pooled = false;
  fake.silentRenewal = false;
  fake.program = undefined;
  await vm.close();
  expect(fake.vms.size).toBe(0);
  expect(fake.snapshots.size).toBe(0);
  expect(fake.referenced).toBe(false);
});

const failure = (code: string) => ({ code, message: 'made up', errno: 12, syscall: 'mmap' });

describe('a snapshot', () => {
  test('has names, and goes on to its forks', async () => {
    await using snapshot = await vm.snapshot({ label: 'warm' });

    expect(snapshot.id).toMatch(/^snap-[0-9a-f]{16}$/);
    expect(snapshot).toMatchObject({ parentId: vm.id, label: 'warm', memoryBytes: 128 * MiB });
    await using fork = await snapshot.fork();
    expect(fork.parentId).toBe(snapshot.id);
    expect(fork.id).toMatch(/^vm-[0-9a-f]{16}$/);
    expect(fork.timings).toMatchObject({ pool: 'none', createMs: 1, restoreMs: 2 });
  });

  test('is asked for before the agent is told to park, and nothing follows until it is there', async () => {
    const guest = fake.lastVm;
    fake.hanging.add('snapshotVm');
    const taking = vm.snapshot();
    await delay(5);
    const later = vm.exec('later');
    await delay(5);

    expect(fake.log).toEqual(['snapshotVm']);
    expect(guest.types).toEqual(['configure', 'park']);

    fake.hanging.clear();
    fake.freeze(guest, 'agent');
    await (await taking).close();
    await later.started;
    expect(guest.types).toEqual(['configure', 'park', 'exec']);
    later.kill('SIGKILL');
    guest.exit((guest.frames.at(-2) ?? guest.frames[0])?.id ?? 0, 0);
    await later.exited.catch(() => {});
  });

  test('that is not there in time leaves a VM that goes on', async () => {
    fake.hanging.add('snapshotVm');

    await expect(vm.snapshot({ timeoutMs: 20 })).rejects.toMatchObject({
      code: 'ERR_VM_PARK_TIMEOUT',
    });
    await (await goOn()).close();
  });

  async function goOn(): Promise<Snapshot> {
    fake.hanging.clear();
    return await vm.snapshot();
  }

  test('is given up by its signal, and the core with it', async () => {
    fake.hanging.add('snapshotVm');
    const abort = new AbortController();
    const taking = vm.snapshot({ signal: abort.signal });
    await delay(5);
    abort.abort('enough');

    await expect(taking).rejects.toMatchObject({ name: 'AbortError', cause: 'enough' });
    expect(fake.log).toEqual(['snapshotVm', 'cancelSnapshot']);
    await (await goOn()).close();
  });

  test('that arrives together with the abort is released', async () => {
    const abort = new AbortController();
    const taking = vm.snapshot({ signal: abort.signal });
    fake.lastVm.onFrame = ({ type }) => {
      // The machine is frozen by then, and says so later.
      if (type === 'park') queueMicrotask(() => abort.abort());
      return undefined;
    };

    await expect(taking).rejects.toMatchObject({ name: 'AbortError' });
  });

  test('of an agent that parked for an earlier attempt is taken again', async () => {
    const guest = fake.lastVm;
    let parks = 0;
    guest.onFrame = ({ type, id }) => {
      if (type !== 'park') return undefined;
      // The first one stands still without a reply to this request.
      if (++parks > 1) return undefined;
      fake.freeze(guest, 'agent');
      return [encodeFrame({ type: FrameType.reply, id })];
    };
    await using snapshot = await vm.snapshot();

    expect(parks).toBe(2);
    expect(fake.log).toEqual(['snapshotVm', 'closeSnapshot', 'snapshotVm']);
    expect(fake.snapshots.size).toBe(1);
    expect(snapshot.parentId).toBe(vm.id);
  });

  test.each([
    ['while hooks run is taken again', 16, undefined],
    ['that the agent refuses fails', 11, 'ERR_VM_AGENT_PROTOCOL'],
  ])('%s', async (_, errno, code) => {
    let parks = 0;
    fake.lastVm.onFrame = ({ type, id }) =>
      type === 'park' && ++parks === 1
        ? [encodeFrame({ type: FrameType.reply, id, value: errno })]
        : undefined;
    const taking = vm.snapshot();

    if (code === undefined) await (await taking).close();
    else await expect(taking).rejects.toMatchObject({ code, errno: -errno });
  });

  test.each(['close', 'exit'] as const)('fails with the VM: %s', async (how) => {
    fake.hanging.add('snapshotVm');
    const taking = vm.snapshot();
    taking.catch(() => {});
    await delay(5);
    if (how === 'close') await vm.close();
    else fake.exit(fake.lastVm, 'panic');

    const code = how === 'close' ? 'ERR_VM_CLOSED' : 'ERR_VM_EXITED';
    await expect(taking).rejects.toMatchObject({ code });
    await expect(vm.snapshot()).rejects.toMatchObject({ code });
    await expect(vm.fork()).rejects.toMatchObject({ code });
  });

  test('that was closed forks no more, and its forks live on', async () => {
    const snapshot = await vm.snapshot();
    const fork = await snapshot.fork();
    expect(snapshot.close()).toBe(snapshot.close());
    await snapshot.close();

    const closed = { code: 'ERR_VM_CLOSED', message: 'The snapshot was closed' };
    await expect(snapshot.fork()).rejects.toMatchObject(closed);
    await expect(snapshot.forkMany(2)).rejects.toMatchObject(closed);
    await expect(snapshot.prewarm(1)).rejects.toMatchObject(closed);
    await expect(snapshot.save('/nowhere')).rejects.toMatchObject(closed);
    await expect(vm.reset(snapshot)).rejects.toMatchObject(closed);
    // Kept for the fork, which can still be reset to it.
    expect(fake.snapshots.size).toBe(1);
    await fork.reset();
    await fork.close();
    expect(fake.snapshots.size).toBe(0);
  });

  test('keeps forks ready until it is closed', async () => {
    const snapshot = await vm.snapshot();
    await snapshot.prewarm(3);
    const [number] = [...fake.snapshots.keys()];
    expect(fake.prewarmed.get(number as number)).toBe(3);
    const fork = await snapshot.fork({ pool: 'require' });
    await snapshot.close();

    expect(fake.prewarmed.get(number as number)).toBe(0);
    await fork.close();
  });

  test.each([
    ['an unknown option', { where: 1 }, TypeError],
    ['an unknown place', { at: 'home' }, TypeError],
    ['a label of another type', { label: 5 }, TypeError],
    ['a long label', { label: 'x'.repeat(1025) }, RangeError],
    ['no time', { timeoutMs: 0 }, RangeError],
  ])('refuses %s', async (_, options, type) => {
    await expect(vm.snapshot(options as never)).rejects.toBeInstanceOf(type);
    expect(fake.log).toEqual([]);
  });
});

describe('at a program', () => {
  test('waits for the agent’s reply first', async () => {
    fake.program = (input) => input;
    const guest = fake.lastVm;
    await using snapshot = await vm.snapshot({ at: 'program' });

    expect(snapshot.memoryBytes).toBe(128 * MiB);
    expect(guest.frames.map(({ type, value }) => [type, value])).toEqual([
      ['configure', 0],
      ['park', 1],
    ]);
  });

  test('lets the guest have what it may need to get there', async () => {
    const guest = fake.lastVm;
    const taking = vm.snapshot({ at: 'program' });
    await delay(50);
    const needed = vm.exec('needed');
    await needed.started;
    expect(guest.types).toEqual(['configure', 'park', 'exec']);

    fake.program = (input) => input;
    await (await taking).close();
    expect(guest.types).toEqual(['configure', 'park', 'exec', 'park']);
    guest.exit(guest.frames[2]?.id ?? 0, 0);
    await needed;
  });

  test('that never parks fails in time', async () => {
    await expect(vm.snapshot({ at: 'program', timeoutMs: 30 })).rejects.toMatchObject({
      code: 'ERR_VM_PARK_TIMEOUT',
      message: expect.stringContaining('program'),
    });
  });
});

describe('a fork', () => {
  let snapshot: Snapshot;

  beforeEach(async () => {
    snapshot = await vm.snapshot();
    fake.log.length = 0;
  });

  afterEach(async () => {
    await snapshot.close();
  });

  test('is there before its first instruction', async () => {
    fake.pooled = true;
    const fork = await snapshot.fork();
    const guest = fake.lastVm;

    expect(guest.entered).toBe(false);
    await fork.ready;
    expect(guest.entered).toBe(true);
    expect(fork.timings).toMatchObject({ pool: 'fork' });
    await fork.close();
  });

  test('on demand is entered with the first work', async () => {
    await using fork = await snapshot.fork({ start: 'on-demand' });
    const guest = fake.lastVm;
    await delay(20);
    expect(guest.entered).toBe(false);
    expect(await fork.processes()).toEqual([]);
    expect(guest.entered).toBe(false);

    const command = fork.exec('true');
    await command.started;
    expect(fake.log).toEqual(['forkSnapshot', 'enterVm']);
    guest.exit(guest.frames[0]?.id ?? 0, 0);
    await command;
  });

  test('is asked nothing before it has confirmed that it is unique', async () => {
    fake.silentRenewal = true;
    await using fork = await snapshot.fork();
    const guest = fake.lastVm;
    const command = fork.exec('true');
    await delay(20);
    expect(guest.entered).toBe(true);
    expect(guest.types).toEqual([]);

    guest.say(renewedFrame(99n));
    await command.started;
    await fork.ready;
    expect(guest.types).toEqual(['exec']);
    guest.exit(guest.frames[0]?.id ?? 0, 0);
    await command;
  });

  test.each([
    [
      'says that it failed',
      renewedFrame(99n, 5, [record(Tag.stage, uint32(RenewStage.entropy))]),
      'failed at reseeding its random numbers: EIO',
    ],
    [
      'says which hook failed',
      renewedFrame(99n, 5, [
        record(Tag.stage, uint32(RenewStage.hook)),
        record(Tag.hook, Buffer.from('10-keys')),
        record(Tag.exitCode, uint32(3)),
      ]),
      'failed at running its hooks (10-keys): exit code 3',
    ],
    ['keeps its parent’s generation', renewedFrame(0n), 'has kept the generation'],
    ['breaks the protocol', Buffer.alloc(64, 0xff), 'broke the protocol'],
  ])('that %s is stopped, and its work fails', async (_, frame, message) => {
    fake.silentRenewal = true;
    const fork = await snapshot.fork();
    const command = fork.exec('true');
    const failed = { code: 'ERR_VM_NOT_UNIQUE', message: expect.stringContaining(message) };
    command.catch(() => {});
    fake.lastVm.say(frame);

    await expect(fork.ready).rejects.toMatchObject(failed);
    await expect(command).rejects.toMatchObject(
      message === 'broke the protocol' ? { code: 'ERR_VM_AGENT_PROTOCOL' } : failed,
    );
    await expect(fork.fs.readFile('/x')).rejects.toMatchObject(failed);
    await expect(fork.snapshot()).rejects.toMatchObject(failed);
    await expect(fork.exited).resolves.toMatchObject({ reason: 'not-unique' });
    expect(fork.state).toBe('exited');
    // Stopped by itself, without a close().
    expect(fake.vms.size).toBe(1);
    await fork.close();
  });

  test('that does not confirm in time is stopped', async () => {
    fake.silentRenewal = true;
    const fork = await snapshot.fork({ timeoutMs: 50 });

    await expect(fork.ready).rejects.toMatchObject({
      code: 'ERR_VM_NOT_UNIQUE',
      message: expect.stringContaining('did not confirm within 50 ms'),
    });
    await fork.close();
  });

  test('that ends before it is ready says how, and never unhandled', async () => {
    const unhandled: unknown[] = [];
    const listener = (reason: unknown): void => void unhandled.push(reason);
    process.on('unhandledRejection', listener);
    fake.silentRenewal = true;
    const [exits, closes] = await snapshot.forkMany(2);
    const [, first] = [...fake.vms.values()];
    fake.exit(first as never, 'panic');
    await closes?.close();
    await delay(20);
    process.off('unhandledRejection', listener);

    expect(unhandled).toEqual([]);
    await expect(exits?.ready).rejects.toMatchObject({ code: 'ERR_VM_EXITED' });
    await expect(closes?.ready).rejects.toMatchObject({ code: 'ERR_VM_CLOSED' });
    await exits?.close();
  });

  test('takes over the environment', async () => {
    await using fork = await snapshot.fork();
    const command = fork.exec('true', { env: { MORE: '1' } });
    await command.started;
    const guest = fake.lastVm;
    const request = guest.frames[0]?.payload.toString() ?? '';

    expect(request).toContain('NAME=value');
    expect(request).toContain('MORE=1');
    expect(request).not.toContain('GONE');
    guest.exit(guest.frames[0]?.id ?? 0, 0);
    await command;
  });

  test('that is aborted is closed', async () => {
    fake.hanging.add('forkSnapshot');
    const abort = new AbortController();
    const forking = snapshot.fork({ signal: abort.signal });
    await delay(5);
    expect(fake.vms.size).toBe(2);
    abort.abort();

    await expect(forking).rejects.toMatchObject({ name: 'AbortError' });
    expect(fake.vms.size).toBe(1);
    // The request is answered in the end, as every one is.
    fake.answerHung();
  });

  test('that takes too long is closed', async () => {
    fake.hanging.add('forkSnapshot');

    await expect(snapshot.fork({ timeoutMs: 20 })).rejects.toMatchObject({
      code: 'ERR_VM_TIMEOUT',
    });
    expect(fake.vms.size).toBe(1);
    fake.answerHung();
  });

  test('of many that fails takes all of them along', async () => {
    fake.failNth('forkSnapshot', 3, failure('ERR_VM_NO_MEMORY'));

    await expect(snapshot.forkMany(5)).rejects.toMatchObject({
      code: 'ERR_VM_NO_MEMORY',
      errno: -12,
    });
    expect(fake.vms.size).toBe(1);
  });

  test('of many that do not fit is not begun', async () => {
    await expect(snapshot.forkMany(100_000)).rejects.toMatchObject({ code: 'ERR_VM_LIMIT' });
    expect(fake.log).toEqual([]);
  });

  test.each([
    ['an unknown option', { when: 'now' }, TypeError],
    ['an unknown start', { start: 'later' }, TypeError],
    ['an unknown pool', { pool: 'some' }, TypeError],
    ['input that is no bytes', { input: 'text' }, TypeError],
    ['input that is too long', { input: Buffer.alloc(61_185) }, RangeError],
    ['an impossible host name', { hostname: '-' }, TypeError],
  ])('refuses %s', async (_, options, type) => {
    await expect(snapshot.fork(options as never)).rejects.toBeInstanceOf(type);
    await expect(snapshot.forkMany(1, options as never)).rejects.toBeInstanceOf(type);
    expect(fake.log).toEqual([]);
  });

  test.each([0, -1, 1.5, Number.NaN, 100_001])('refuses to be %d', async (count) => {
    await expect(snapshot.forkMany(count)).rejects.toBeInstanceOf(RangeError);
  });

  test('of a running VM names it as its parent and keeps no snapshot', async () => {
    const forks = await vm.forkMany(2, { hostname: 'twin' });

    expect(fake.log.filter((call) => call === 'snapshotVm')).toHaveLength(1);
    for (const fork of forks) {
      expect(fork.parentId).toBe(vm.id);
      await fork.ready;
    }
    // The first is this test's.
    expect(fake.snapshots.size).toBe(2);
    await Promise.all(forks.map((fork) => fork.close()));
    expect(fake.snapshots.size).toBe(1);
  });

  test('can be forked', async () => {
    await using fork = await snapshot.fork({ start: 'on-demand' });
    await using second = await fork.fork();
    await second.ready;

    expect(second.parentId).toBe(fork.id);
  });
});

function record(tag: number, bytes: Buffer): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt16LE(tag, 0);
  header.writeUInt32LE(bytes.length, 4);
  return Buffer.concat([header, bytes]);
}
