import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

import { MiB, type Snapshot, Vm } from '../../lib/index.js';
import { type FakeNative, fakeNative } from '../helpers/fake-core.js';
import { type FakeVm, renewedFrame } from '../helpers/fake-vm.js';

vi.mock('../../lib/native.js', async (original) => {
  const { mockNative } = await import('../helpers/fake-core.js');
  return mockNative(await original());
});

let vm: Vm;
let fake: FakeNative;
let parent: FakeVm;
let snapshot: Snapshot;

beforeEach(async () => {
  vm = await Vm.create();
  fake = fakeNative();
  parent = fake.lastVm;
  snapshot = await vm.snapshot();
  fake.log.length = 0;
});

afterEach(async () => {
  fake.silentRenewal = false;
  fake.failing.clear();
  fake.hanging.clear();
  fake.program = undefined;
  await snapshot.close();
  await vm.close();
  expect(fake.snapshots.size).toBe(0);
  expect(fake.vms.size).toBe(0);
  expect(fake.referenced).toBe(false);
});

async function finish(guest: FakeVm, command: Promise<unknown>): Promise<void> {
  guest.exit(guest.frames.findLast(({ type }) => type === 'exec')?.id ?? 0, 0);
  await command;
}

const reset = { code: 'ERR_VM_RESET' };

describe('a reset', () => {
  let fork: Vm;
  let guest: FakeVm;

  beforeEach(async () => {
    fork = await snapshot.fork();
    guest = fake.lastVm;
    await fork.ready;
    fake.log.length = 0;
    guest.frames.length = 0;
  });

  afterEach(async () => {
    await fork.close();
  });

  test('fails what is pending, keeps the id, and is ready again', async () => {
    const { id } = fork;
    const before = fork.ready;
    const command = fork.exec('sleep');
    const reading = fork.fs.readFile('/x');
    const taking = fork.snapshot({ at: 'program' });
    const calling = fork.parked.call(Buffer.alloc(1));
    for (const promise of [command, reading, taking, calling]) promise.catch(() => {});
    await command.started;
    await fork.reset();

    await expect(command).rejects.toMatchObject(reset);
    await expect(reading).rejects.toMatchObject(reset);
    await expect(taking).rejects.toMatchObject(reset);
    await expect(calling).rejects.toMatchObject(reset);
    expect(fork.id).toBe(id);
    expect(fork.ready).not.toBe(before);
    await fork.ready;
    expect(fork.state).toBe('running');
    expect(await fork.processes()).toEqual([]);
    const later = fork.exec('true');
    await later.started;
    await finish(guest, later);
  });

  test('holds back what is asked meanwhile until the guest is unique again', async () => {
    fake.silentRenewal = true;
    const resetting = fork.reset();
    const command = fork.exec('after');
    await resetting;
    await delay(20);
    expect(guest.types).toEqual([]);
    expect(fake.log).toEqual(['resetVm', 'enterVm']);

    guest.say(renewedFrame(4711n));
    await command.started;
    expect(guest.types).toEqual(['exec']);
    await finish(guest, command);
  });

  test('starts a fork on demand with its next work', async () => {
    await using waiting = await snapshot.fork({ start: 'on-demand' });
    const waitingGuest = fake.lastVm;
    await waiting.ready;
    await waiting.reset();
    await delay(20);
    expect(waitingGuest.entered).toBe(false);

    const command = waiting.exec('true');
    await command.started;
    await finish(waitingGuest, command);
  });

  test('drops what the guest of before still says', async () => {
    const resetting = fork.reset();
    guest.say(Buffer.alloc(64, 0xff));
    await resetting;
    await fork.ready;

    const command = fork.exec('true');
    await command.started;
    await finish(guest, command);
  });

  test('goes to another snapshot where one is given, and back by itself', async () => {
    await using other = await fork.snapshot();
    await fork.reset(other);
    await fork.ready;
    await fork.reset();
    await fork.ready;

    expect(fake.log.filter((call) => call === 'resetVm')).toHaveLength(2);
    expect(fork.parentId).toBe(snapshot.id);
  });

  test('that follows another at once is the one that counts', async () => {
    const first = fork.reset();
    const between = fork.exec('between');
    between.catch(() => {});
    const second = fork.reset();
    await Promise.all([first, second]);
    await fork.ready;

    await expect(between).rejects.toMatchObject(reset);
    const command = fork.exec('true');
    await command.started;
    await finish(guest, command);
  });

  test('that fails leaves a VM that can be reset again', async () => {
    fake.failing.set('resetVm', {
      code: 'ERR_VM_KVM',
      message: 'no',
      errno: 22,
      syscall: 'KVM_SET_REGS',
    });

    await expect(fork.reset()).rejects.toMatchObject({ code: 'ERR_VM_KVM', errno: -22 });
    await expect(fork.exec('true')).rejects.toMatchObject({ code: 'ERR_VM_KVM' });
    fake.failing.clear();
    await fork.reset();
    await fork.ready;
  });

  test('that does not become unique stops the VM', async () => {
    fake.silentRenewal = true;
    await fork.reset();
    guest.say(renewedFrame(0n));

    await expect(fork.ready).rejects.toMatchObject({ code: 'ERR_VM_NOT_UNIQUE' });
    await expect(fork.exited).resolves.toMatchObject({ reason: 'not-unique' });
  });

  test('lets a paused VM run again', async () => {
    await fork.pause();
    await fork.reset();
    await fork.ready;

    expect(fork.state).toBe('running');
  });

  test('gives commands ids that no earlier one has', async () => {
    const before = fork.exec('one');
    const { id } = await before.started;
    before.catch(() => {});
    await fork.reset();
    const after = fork.exec('two');

    expect((await after.started).id).not.toBe(id);
    await expect(fork.attach(id)).rejects.toMatchObject({ code: 'ERR_VM_EXEC' });
    await finish(guest, after);
  });

  test.each(['exit', 'close'] as const)('of a VM that ends meanwhile fails: %s', async (how) => {
    fake.hanging.add('resetVm');
    const resetting = fork.reset();
    resetting.catch(() => {});
    await delay(5);
    if (how === 'exit') fake.exit(guest, 'panic');
    else fork.close().catch(() => {});
    fake.answerHung();

    await resetting.catch(() => {});
    const code = how === 'exit' ? 'ERR_VM_EXITED' : 'ERR_VM_CLOSED';
    await expect(fork.ready).rejects.toMatchObject({ code });
    await expect(fork.reset()).rejects.toMatchObject({ code });
    await expect(fork.exec('true')).rejects.toMatchObject({ code });
  });

  test('takes nothing but a snapshot of the same size', async () => {
    await using large = await Vm.create({ memoryBytes: 256 * MiB });
    await using other = await large.snapshot();
    const command = fork.exec('x');
    await command.started;

    await expect(fork.reset(other)).rejects.toBeInstanceOf(RangeError);
    await expect(fork.reset('snapshot' as never)).rejects.toBeInstanceOf(TypeError);
    // Nothing was touched.
    await finish(guest, command);
  });
});

test('a VM that was booted has no snapshot to be reset to, but can be given one', async () => {
  await expect(vm.reset()).rejects.toMatchObject({ code: 'ERR_VM_NO_SNAPSHOT' });
  await vm.reset(snapshot);
  await vm.ready;

  const command = vm.exec('true');
  await command.started;
  await finish(parent, command);
});

describe('a paused VM', () => {
  const paused = { code: 'ERR_VM_PAUSED' };

  test('refuses work, and goes on when it is resumed', async () => {
    await Promise.all([vm.pause(), vm.pause()]);
    expect(vm.state).toBe('paused');
    expect(fake.log).toEqual(['pauseVm']);
    expect(parent.paused).toBe(true);

    await expect(vm.exec('true')).rejects.toMatchObject(paused);
    await expect(vm.fs.readFile('/x')).rejects.toMatchObject(paused);
    await expect(vm.snapshot()).rejects.toMatchObject(paused);
    await expect(vm.fork()).rejects.toMatchObject(paused);
    await expect(vm.forkMany(2)).rejects.toMatchObject(paused);
    await expect(vm.parked.call(Buffer.alloc(1))).rejects.toMatchObject(paused);
    expect(await vm.processes()).toEqual([]);
    await vm.resume();
    await vm.resume();
    expect(vm.state).toBe('running');
    expect(parent.paused).toBe(false);
    const command = vm.exec('true');
    await command.started;
    await finish(parent, command);
  });

  test('keeps pending work, and sends it nothing', async () => {
    const command = vm.exec('x');
    await command.started;
    await vm.pause();
    const seen = parent.frames.length;
    command.stdin.end('input');
    command.kill('SIGTERM');
    await delay(10);
    expect(parent.frames).toHaveLength(seen);

    await vm.resume();
    await delay(10);
    expect(parent.types.slice(seen).sort()).toEqual(['data', 'end', 'signal']);
    await finish(parent, command);
  });

  test('that could not be paused runs on', async () => {
    fake.failing.set('pauseVm', { code: 'ERR_VM_SYSTEM', message: 'no', errno: 5, syscall: '' });

    await expect(vm.pause()).rejects.toMatchObject({ code: 'ERR_VM_SYSTEM' });
    expect(vm.state).toBe('running');
    await (await vm.snapshot()).close();
  });

  test('can be closed, and is not resumed then', async () => {
    await vm.pause();
    await vm.close();

    expect(vm.state).toBe('closed');
    await expect(vm.resume()).rejects.toMatchObject({ code: 'ERR_VM_CLOSED' });
    await expect(vm.pause()).rejects.toMatchObject({ code: 'ERR_VM_CLOSED' });
  });

  test('does not lose its uniqueness to the clock', async () => {
    fake.silentRenewal = true;
    await using fork = await snapshot.fork({ timeoutMs: 40 });
    const guest = fake.lastVm;
    await delay(5);
    await fork.pause();
    await delay(80);
    await fork.resume();
    guest.say(renewedFrame(4711n));

    await fork.ready;
  });
});
