import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

import { type ExecError, type ExecProcess, type Snapshot, Vm } from '../../lib/index.js';
import { encodeFrame, FrameType, Stream } from '../../lib/internal/protocol/protocol.js';
import { type FakeNative, fakeNative } from '../helpers/fake-core.js';
import type { FakeVm } from '../helpers/fake-vm.js';

// What was under way when a VM was frozen, and what becomes of it in its forks.

vi.mock('../../lib/native.js', async (original) => {
  const { mockNative } = await import('../helpers/fake-core.js');
  return mockNative(await original());
});

let vm: Vm;
let fake: FakeNative;
let parent: FakeVm;

beforeEach(async () => {
  vm = await Vm.create();
  fake = fakeNative();
  parent = fake.lastVm;
});

afterEach(async () => {
  await vm.close();
  expect(fake.snapshots.size).toBe(0);
  expect(fake.referenced).toBe(false);
});

function data(id: number, offset: number, contents: string, stream: number = Stream.output) {
  const payload = [Buffer.from(contents)];
  return encodeFrame({ type: FrameType.data, stream, id, offset, payload });
}

function end(id: number, offset: number, stream: number = Stream.output) {
  return encodeFrame({ type: FrameType.end, stream, id, offset });
}

const lastId = (guest: FakeVm, type = 'exec'): number =>
  guest.frames.findLast((frame) => frame.type === type)?.id ?? 0;

/** A command in the parent whose output is read there, and what a fork then starts from. */
async function freezeWithCommand(): Promise<{
  handle: ExecProcess;
  id: string;
  operation: number;
  snapshot: Snapshot;
}> {
  const handle = vm.exec(['server', '--flag'], { stdout: 'pipe' });
  handle.stdin.write('in');
  handle.stdout.on('data', () => {});
  const { id } = await handle.started;
  const operation = parent.frames.find(({ type }) => type === 'exec')?.id ?? 0;
  parent.say(data(operation, 0, 'before'));
  await once(handle.stdout, 'data');
  return { handle, id, operation, snapshot: await vm.snapshot() };
}

describe('a command that ran when its VM was frozen', () => {
  let handle: ExecProcess;
  let id: string;
  let operation: number;
  let snapshot: Snapshot;
  let fork: Vm;
  let guest: FakeVm;

  beforeEach(async () => {
    ({ handle, id, operation, snapshot } = await freezeWithCommand());
    fork = await snapshot.fork();
    guest = fake.lastVm;
  });

  afterEach(async () => {
    handle.exited.catch(() => {});
    await fork.close();
    await snapshot.close();
  });

  test('is listed under the same id in both', async () => {
    const before = Date.now() - 60_000;
    const [there] = await vm.processes();
    const [here] = await fork.processes();

    expect(there).toEqual({
      id,
      pid: 100 + operation,
      command: ['server', '--flag'],
      startedAt: expect.any(Date),
    });
    expect(here).toEqual(there);
    expect(there?.startedAt.getTime()).toBeGreaterThan(before);
  });

  test('goes on in the fork where it was: output, input, end', async () => {
    const attached = fork.attach(id);
    expect(await attached.started).toEqual({ id, pid: 100 + operation });
    const output = text(attached.stdout);
    attached.stdin.end('more');
    await delay(10);
    const input = guest.frames.filter(({ type }) => type === 'data');
    expect(input).toMatchObject([{ id: operation }]);
    expect(input[0]?.payload.toString()).toBe('more');

    guest.say(data(operation, 6, 'after'), end(operation, 11));
    guest.exit(operation, 3);
    expect(await output).toBe('after');
    expect(await attached.exited).toEqual({ exitCode: 3, signal: null });
    expect(await attached).toMatchObject({ ok: false, exitCode: 3, stdout: '' });
    expect(await fork.processes()).toEqual([]);
    expect(await vm.processes()).toHaveLength(1);
  });

  test('is collected from there on when the handle is awaited', async () => {
    const attached = fork.attach(id);
    const result = attached.then();
    await fork.ready;
    await delay(10);
    guest.say(data(operation, 6, 'after'), data(operation, 0, 'error', Stream.error));
    guest.exit(operation, 0);

    expect(await result).toMatchObject({ ok: true, stdout: 'after', stderr: 'error' });
  });

  test('keeps what it writes before somebody attaches, inside the window', async () => {
    guest.say(data(operation, 6, 'one '), data(operation, 10, 'two '));
    await fork.ready;
    const attached = fork.attach(id);
    const output = text(attached.stdout);
    guest.say(data(operation, 14, 'three'), end(operation, 19));
    guest.exit(operation, 0);

    expect(await output).toBe('one two three');
    await attached;
  });

  test('has its handle also when it ended before somebody attached, once', async () => {
    guest.say(data(operation, 6, 'last words'), end(operation, 16));
    guest.exit(operation, 4);
    await fork.ready;
    await delay(10);
    expect(await fork.processes()).toEqual([]);

    expect(await fork.attach(id)).toMatchObject({ exitCode: 4, stdout: 'last words' });
    await expect(fork.attach(id)).rejects.toMatchObject({ code: 'ERR_VM_EXEC', errno: -3 });
  });

  test('can be signalled and killed in the fork without harm to the parent’s', async () => {
    const attached = fork.attach(id);
    attached.kill('SIGHUP');
    await fork.ready;
    await delay(10);
    expect(guest.frames).toMatchObject([{ type: 'signal', id: operation, value: 1 }]);
    expect(parent.types).not.toContain('signal');
    expect((await vm.processes()).map((info) => info.id)).toEqual([id]);
  });

  test('is the fork’s own to break the protocol with', async () => {
    await fork.ready;
    guest.say(data(operation, 5, 'from before'));
    await delay(10);

    await expect(fork.exec('true')).rejects.toMatchObject({ code: 'ERR_VM_AGENT_PROTOCOL' });
    expect(await vm.processes()).toHaveLength(1);
  });

  test('goes on in a fork of the fork', async () => {
    await using second = await fork.fork();
    const attached = second.attach(id);
    const output = text(attached.stdout);
    fake.lastVm.say(data(operation, 6, 'there'), end(operation, 11));
    fake.lastVm.exit(operation, 0);

    expect(await output).toBe('there');
    await attached;
  });

  test('keeps the event loop alive only when somebody waits for it', async () => {
    await fork.ready;
    handle.kill('SIGKILL');
    parent.exit(operation, 0);
    await handle.exited;
    expect(fake.referenced).toBe(false);
    const attached = fork.attach(id);
    expect(fake.referenced).toBe(true);
    guest.exit(operation, 0);
    await attached;
    expect(fake.referenced).toBe(false);
  });
});

test('commands of the fork have ids of their own', async () => {
  const { id, snapshot } = await freezeWithCommand();
  await using fork = await snapshot.fork();
  const command = fork.exec('x');
  const started = await command.started;

  expect(started.id).not.toBe(id);
  expect(started.id.startsWith(`${fork.id}/`)).toBe(true);
  expect((await fork.processes()).map((info) => info.id)).toEqual([id, started.id]);
  fake.lastVm.exit(lastId(fake.lastVm), 0);
  await command;
  await snapshot.close();
});

test('in its own VM, attaching gives a second handle with the same streams', async () => {
  const handle = vm.exec('x');
  handle.stdin.end();
  const { id } = await handle.started;
  const second = vm.attach(id);
  const operation = parent.frames.find(({ type }) => type === 'exec')?.id ?? 0;

  expect(second.stdin).toBe(handle.stdin);
  const results = Promise.all([handle, second]);
  parent.say(data(operation, 0, 'text'));
  parent.exit(operation, 0);
  expect(await results).toMatchObject([{ stdout: 'text' }, { stdout: 'text' }]);
});

test('a command that nobody knows cannot be attached to', async () => {
  const handle = vm.attach('vm-x/1');

  await expect(handle.started).rejects.toMatchObject({ code: 'ERR_VM_EXEC' });
  await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_EXEC', errno: -3, syscall: 'attach' });
  expect(() => vm.attach(5 as never)).toThrow(TypeError);
  await vm.close();
  await expect(vm.attach('vm-x/1')).rejects.toMatchObject({ code: 'ERR_VM_CLOSED' });
});

test('a file operation goes on in the parent and is cancelled in the fork', async () => {
  const reading = vm.fs.readFile('/x', 'utf8');
  await delay(5);
  const operation = lastId(parent, 'file');
  await using snapshot = await vm.snapshot();
  await using fork = await snapshot.fork();
  const guest = fake.lastVm;
  // What crosses the cancellation on its way does no harm.
  const cancelled = encodeFrame({ type: FrameType.reply, id: operation, value: 125 });
  guest.onFrame = ({ type }) =>
    type === 'cancel' ? [data(operation, 0, 'late'), cancelled] : undefined;
  await fork.ready;
  await delay(5);

  expect(guest.frames).toMatchObject([{ type: 'cancel', id: operation }]);
  const command = fork.exec('true');
  await command.started;
  guest.exit(lastId(guest), 0);
  await command;
  parent.say(data(operation, 0, 'contents'), end(operation, 8));
  parent.say(encodeFrame({ type: FrameType.reply, id: operation }));
  expect(await reading).toBe('contents');
});

test('what waits to be sent when the VM is frozen belongs to the parent alone', async () => {
  let command: ExecProcess | undefined;
  parent.onFrame = ({ type }) => {
    if (type === 'park') command = vm.exec('mine');
    return undefined;
  };
  await using snapshot = await vm.snapshot();
  await command?.started;
  await using fork = await snapshot.fork();

  expect(await fork.processes()).toEqual([]);
  expect(await vm.processes()).toHaveLength(1);
  parent.exit(lastId(parent), 0);
  await command;
});

test('half a frame that was received before the freeze is completed in the fork', async () => {
  const handle = vm.exec('x', { stdout: 'pipe', stdin: 'ignore' });
  handle.stdout.resume();
  const { id } = await handle.started;
  const operation = lastId(parent);
  const frame = data(operation, 0, 'split here');
  fake.program = (input) => input;
  const taking = vm.snapshot({ at: 'program' });
  parent.onFrame = ({ type, id: park }) =>
    type === 'park'
      ? [encodeFrame({ type: FrameType.reply, id: park }), frame.subarray(0, 30)]
      : undefined;
  await using snapshot = await taking;
  await using fork = await snapshot.fork();
  const attached = fork.attach(id);
  const output = text(attached.stdout);
  fake.lastVm.say(frame.subarray(30), end(operation, 10));
  fake.lastVm.exit(operation, 0);

  expect(await output).toBe('split here');
  await attached;
  parent.say(frame.subarray(30));
  parent.exit(operation, 0);
  await handle;
});

test('output that nobody takes has an end, and the command with it', async () => {
  // 64 of them each have a window of a mebibyte, and all together room for 64 MiB.
  const handles = Array.from({ length: 70 }, () => {
    const handle = vm.exec('flood');
    handle.then(undefined, () => {});
    return handle;
  });
  const ids = await Promise.all(handles.map(async ({ started }) => (await started).id));
  await using snapshot = await vm.snapshot();
  await using fork = await snapshot.fork();
  await fork.ready;
  const guest = fake.lastVm;
  const operations = parent.frames.filter(({ type }) => type === 'exec').map(({ id }) => id);
  const chunk = 'x'.repeat(65_536);
  for (const operation of operations) {
    for (let offset = 0; offset < 2 ** 20; offset += chunk.length) {
      guest.say(data(operation, offset, chunk));
    }
  }
  await delay(50);

  expect(guest.types).toContain('cancel');
  const last = ids.at(-1) ?? '';
  const error = await fork.attach(last).catch((reason: ExecError) => reason);
  expect(error).toMatchObject({ code: 'ERR_VM_MAX_OUTPUT' });
  expect(await fork.attach(ids[0] ?? '').started).toMatchObject({ id: ids[0] });
  for (const operation of operations) parent.exit(operation, 0);
  await Promise.all(handles);
});
