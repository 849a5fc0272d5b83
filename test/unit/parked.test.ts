import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

import { type Snapshot, Vm } from '../../lib/index.js';
import { type FakeNative, fakeNative } from '../helpers/fake-core.js';

vi.mock('../../lib/native.js', async (original) => {
  const { mockNative } = await import('../helpers/fake-core.js');
  return mockNative(await original());
});

let vm: Vm;
let fake: FakeNative;
let snapshot: Snapshot;

const reverse = (input: Buffer): Buffer => Buffer.from(input).reverse();

beforeEach(async () => {
  vm = await Vm.create();
  fake = fakeNative();
  fake.program = reverse;
  snapshot = await vm.snapshot({ at: 'program' });
  fake.log.length = 0;
});

afterEach(async () => {
  fake.silentRenewal = false;
  fake.failing.clear();
  await snapshot.close();
  await vm.close();
  expect(fake.snapshots.size).toBe(0);
  expect(fake.vms.size).toBe(0);
  expect(fake.referenced).toBe(false);
});

describe('a call', () => {
  test('is answered by the program, after the fork is unique', async () => {
    await using fork = await snapshot.fork();

    expect(await fork.parked.call(Buffer.from('abc'))).toEqual(Buffer.from('cba'));
    expect(fake.lastVm.types).toEqual(['renew']);
    expect(fake.log).toEqual(['forkSnapshot', 'callProgram']);
  });

  test('goes to the program at once where that takes care of itself', async () => {
    await using fork = await snapshot.fork({ unique: 'program' });
    const guest = fake.lastVm;
    await delay(10);
    expect(guest.entered).toBe(false);

    expect(await fork.parked.call(Buffer.from('abc'))).toEqual(Buffer.from('cba'));
    expect(guest.types).toEqual([]);
    // Other work makes the rest of the guest unique first.
    const command = fork.exec('true');
    await command.started;
    expect(guest.types).toEqual(['renew', 'exec']);
    guest.exit(guest.frames[1]?.id ?? 0, 0);
    await command;
  });

  test('takes a copy of its input', async () => {
    await using fork = await snapshot.fork();
    const input = Buffer.from('abc');
    const answer = fork.parked.call(input);
    input.fill(0);

    expect(await answer).toEqual(Buffer.from('cba'));
  });

  test('waits for those before it', async () => {
    fake.program = undefined;
    const first = vm.parked.call(Buffer.from('1'));
    const second = vm.parked.call(Buffer.from('2'));
    await delay(5);
    const guest = fake.lastVm;
    expect([...guest.calls.values()].map(String)).toEqual(['1']);
    guest.answer(Buffer.from('one'));
    expect(String(await first)).toBe('one');
    await delay(5);
    guest.answer(Buffer.from('two'));

    expect(String(await second)).toBe('two');
  });

  test('that nobody answers ends in time, and frees the turn', async () => {
    fake.program = undefined;

    await expect(vm.parked.call(Buffer.alloc(0), { timeoutMs: 20 })).rejects.toMatchObject({
      code: 'ERR_VM_TIMEOUT',
    });
    expect(fake.lastVm.calls.size).toBe(0);
    fake.program = reverse;
    expect(await vm.parked.call(Buffer.from('ab'))).toEqual(Buffer.from('ba'));
  });

  test('is given up by its signal, in its turn and before', async () => {
    fake.program = undefined;
    const abort = new AbortController();
    const first = vm.parked.call(Buffer.alloc(0));
    const second = vm.parked.call(Buffer.alloc(0), { signal: abort.signal });
    second.catch(() => {});
    await delay(5);
    abort.abort('enough');
    await expect(second).rejects.toMatchObject({ name: 'AbortError', cause: 'enough' });
    expect(fake.log).toEqual(['callProgram']);

    const third = vm.parked.call(Buffer.alloc(0), { signal: abort.signal });
    await expect(third).rejects.toMatchObject({ name: 'AbortError' });
    fake.lastVm.answer(Buffer.from('one'));
    expect(String(await first)).toBe('one');
  });

  test('fails as the program says', async () => {
    fake.program = undefined;
    const calling = vm.parked.call(Buffer.alloc(0));
    await delay(5);
    fake.lastVm.fail({ code: 'ERR_VM_PROGRAM', message: 'no such page', errno: 0, syscall: '' });

    await expect(calling).rejects.toMatchObject({
      code: 'ERR_VM_PROGRAM',
      message: 'no such page',
    });
  });

  test.each(['exit', 'close'] as const)('fails with the VM: %s', async (how) => {
    fake.program = undefined;
    const fork = await snapshot.fork();
    const calling = fork.parked.call(Buffer.alloc(0));
    calling.catch(() => {});
    await fork.ready;
    await delay(5);
    if (how === 'exit') fake.exit(fake.lastVm, 'power-off');
    else await fork.close();

    const code = how === 'exit' ? 'ERR_VM_EXITED' : 'ERR_VM_CLOSED';
    await expect(calling).rejects.toMatchObject({ code });
    await fork.close();
  });

  test.each([
    ['no bytes', 'text', undefined, TypeError],
    ['too many bytes', Buffer.alloc(61_185), undefined, RangeError],
    ['an unknown option', Buffer.alloc(1), { within: 5 }, TypeError],
    ['too large an answer', Buffer.alloc(1), { maxBytes: 61_185 }, RangeError],
    ['no time', Buffer.alloc(1), { timeoutMs: 0 }, RangeError],
  ])('refuses %s', async (_, input, options, type) => {
    await expect(vm.parked.call(input as Buffer, options as never)).rejects.toBeInstanceOf(type);
    expect(fake.log).toEqual([]);
  });
});

describe('input of a fork', () => {
  test('is its first call', async () => {
    await using fork = await snapshot.fork({ input: Buffer.from('abc'), unique: 'program' });

    expect(await fork.parked.first).toEqual(Buffer.from('cba'));
    expect(fake.lastVm.types).toEqual([]);
  });

  test('may be empty, and need not be', async () => {
    await using fork = await snapshot.fork({ input: Buffer.alloc(0) });
    await using other = await snapshot.fork();

    expect(await fork.parked.first).toEqual(Buffer.alloc(0));
    expect(other.parked.first).toBeUndefined();
  });

  test('that fails says so to whoever asks, and to nobody else', async () => {
    const unhandled: unknown[] = [];
    const listener = (reason: unknown): void => void unhandled.push(reason);
    process.on('unhandledRejection', listener);
    fake.program = undefined;
    const fork = await snapshot.fork({ input: Buffer.from('abc'), unique: 'program' });
    await fork.close();
    await delay(10);
    process.off('unhandledRejection', listener);

    expect(unhandled).toEqual([]);
    await expect(fork.parked.first).rejects.toMatchObject({ code: 'ERR_VM_CLOSED' });
  });
});

describe('a fork of a parked program', () => {
  test('is told to become unique, since its agent did not park', async () => {
    await using fork = await snapshot.fork();
    await fork.ready;

    expect(fake.lastVm.types).toEqual(['renew']);
    expect(fake.log).not.toContain('enterVm');
  });

  test('on demand is told so with the first work', async () => {
    await using fork = await snapshot.fork({ start: 'on-demand' });
    await delay(10);
    expect(fake.lastVm.types).toEqual([]);

    expect(await fork.parked.call(Buffer.from('ab'))).toEqual(Buffer.from('ba'));
    expect(fake.lastVm.types).toEqual(['renew']);
  });

  test('becomes unique when somebody asks whether it is', async () => {
    await using fork = await snapshot.fork({ unique: 'program' });
    await fork.ready;

    expect(fake.lastVm.types).toEqual(['renew']);
  });

  test('is reset to its program', async () => {
    await using fork = await snapshot.fork({ unique: 'program' });
    expect(await fork.parked.call(Buffer.from('ab'))).toEqual(Buffer.from('ba'));
    await fork.reset();
    await delay(10);

    expect(await fork.parked.call(Buffer.from('cd'))).toEqual(Buffer.from('dc'));
    expect(fake.lastVm.types).toEqual([]);
  });
});
