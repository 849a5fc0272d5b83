import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

import { Snapshot, Vm } from '../../lib/index.js';
import { type FakeNative, fakeNative } from '../helpers/fake-core.js';

vi.mock('../../lib/native.js', async (original) => {
  const { mockNative } = await import('../helpers/fake-core.js');
  return mockNative(await original());
});

let root: string;
let vm: Vm;
let fake: FakeNative;
let snapshot: Snapshot;

beforeEach(async () => {
  root = mkdtempSync(path.join(tmpdir(), 'forklet-snapshots-'));
  vm = await Vm.create({ env: { NAME: 'value' }, hostname: 'parent' });
  fake = fakeNative();
  snapshot = await vm.snapshot({ label: 'warm' });
  fake.log.length = 0;
});

afterEach(async () => {
  await snapshot.close();
  await vm.close();
  rmSync(root, { recursive: true });
  expect(fake.snapshots.size).toBe(0);
  expect(fake.vms.size).toBe(0);
  expect(fake.referenced).toBe(false);
});

test('a snapshot that was saved is the same when it is loaded', async () => {
  const directory = path.join(root, 'one');
  await snapshot.save(directory);
  await using loaded = await Snapshot.load(path.relative(process.cwd(), directory));

  const { id, parentId, label, memoryBytes } = snapshot;
  expect(loaded).toMatchObject({ id, parentId, label, memoryBytes });
  await using fork = await loaded.fork();
  const command = fork.exec('true');
  await command.started;
  const guest = fake.lastVm;
  expect(guest.frames[0]?.payload.toString()).toContain('NAME=value');
  guest.exit(guest.frames[0]?.id ?? 0, 0);
  await command;
});

test('its commands can be attached to, under the ids of before', async () => {
  const command = vm.exec(['server']);
  const { id, pid } = await command.started;
  await using running = await vm.snapshot();
  await running.save(path.join(root, 'one'));
  await using loaded = await Snapshot.load(path.join(root, 'one'));
  await using fork = await loaded.fork();

  expect(await fork.processes()).toMatchObject([{ id, pid, command: ['server'] }]);
  const attached = fork.attach(id);
  fake.lastVm.exit(pid - 100, 7);
  expect(await attached).toMatchObject({ exitCode: 7 });
  fake.vms
    .values()
    .next()
    .value?.exit(pid - 100, 0);
  await command;
});

test('saving leaves alone what is there, unless it is to be replaced', async () => {
  const directory = path.join(root, 'one');
  await snapshot.save(directory);

  await expect(snapshot.save(directory)).rejects.toMatchObject({ code: 'ERR_VM_EXISTS' });
  await snapshot.save(directory, { overwrite: true });
});

test('what is closed while it is saved is kept until then', async () => {
  fake.hanging.add('saveSnapshot');
  const saving = snapshot.save(path.join(root, 'one'));
  await snapshot.close();
  expect(fake.snapshots.size).toBe(1);
  fake.answerHung();
  await saving;
});

test.each([
  [
    'saving',
    'saveSnapshot',
    (signal: AbortSignal) => snapshot.save(path.join(root, 'x'), { signal }),
  ],
  [
    'loading',
    'loadSnapshot',
    (signal: AbortSignal) => Snapshot.load(path.join(root, 'one'), { signal }),
  ],
])('%s is given up by its signal', async (_, request, run) => {
  await snapshot.save(path.join(root, 'one'));
  fake.log.length = 0;
  fake.hanging.add(request);
  const abort = new AbortController();
  const running = run(abort.signal);
  await delay(5);
  abort.abort('enough');

  await expect(running).rejects.toMatchObject({ name: 'AbortError', cause: 'enough' });
  expect(fake.log).toEqual([request, 'cancelRequest']);
  await expect(run(abort.signal)).rejects.toMatchObject({ name: 'AbortError' });
  expect(fake.log).toHaveLength(2);
  fake.hanging.clear();
});

test('there has to be something to load', async () => {
  await expect(Snapshot.load(path.join(root, 'none'))).rejects.toMatchObject({
    code: 'ERR_VM_BAD_SNAPSHOT',
  });
});

test.each([
  ['a number', 5],
  ['nothing', ''],
  ['a NUL', 'a\0b'],
])('%s is no directory', async (_, directory) => {
  await expect(Snapshot.load(directory as string)).rejects.toBeInstanceOf(TypeError);
  await expect(snapshot.save(directory as string)).rejects.toBeInstanceOf(TypeError);
});

describe('a state that is not ours', () => {
  type State = { [key: string]: unknown; vm: { [key: string]: unknown; agent: Agent } };
  type Agent = { [key: string]: unknown; commands: Record<string, unknown>[] };

  async function savedState(): Promise<{ directory: string; state: State }> {
    const command = vm.exec(['server']);
    command.catch(() => {});
    await command.started;
    await using running = await vm.snapshot();
    const directory = path.join(root, 'one');
    await running.save(directory);
    const text = readFileSync(path.join(directory, 'session'), 'utf8');
    return { directory, state: JSON.parse(text) as State };
  }

  const command = (state: State): Record<string, unknown> => state.vm.agent.commands[0] ?? {};

  test.each<[string, (state: State) => unknown]>([
    ['is another version’s', (state) => Object.assign(state, { version: 2 })],
    ['has no id', (state) => delete state['id']],
    ['has a path for an id', (state) => Object.assign(state, { id: 'a\nb' })],
    ['has a label of another type', (state) => Object.assign(state, { label: 5 })],
    ['has no VM', (state) => Object.assign(state, { vm: [] })],
    ['has a list for an environment', (state) => Object.assign(state.vm, { env: ['A=b'] })],
    ['has a number in its environment', (state) => Object.assign(state.vm, { env: { A: 1 } })],
    ['has NUL in its environment', (state) => Object.assign(state.vm, { env: { A: 'a\0b' } })],
    ['has an impossible variable', (state) => Object.assign(state.vm, { env: { 'A=B': '1' } })],
    [
      'has too large an environment',
      (state) => Object.assign(state.vm, { env: { A: 'x'.repeat(2 ** 21), B: 'x' } }),
    ],
    ['has a long host name', (state) => Object.assign(state.vm, { hostname: 'x'.repeat(65) })],
    ['has a fraction for an id', (state) => Object.assign(state.vm.agent, { lastId: 1.5 })],
    ['has no generation', (state) => Object.assign(state.vm.agent, { generation: '0x1' })],
    [
      'has a whole frame left',
      (state) => Object.assign(state.vm.agent, { remainder: Buffer.alloc(24).toString('base64') }),
    ],
    [
      'has an impossible frame left',
      (state) =>
        Object.assign(state.vm.agent, { remainder: Buffer.alloc(24, 0xff).toString('base64') }),
    ],
    ['has commands that are none', (state) => Object.assign(state.vm.agent, { commands: {} })],
    [
      'has more operations than there can be',
      (state) =>
        Object.assign(state.vm.agent, { others: Array.from({ length: 4097 }, (_, i) => i + 10) }),
    ],
    [
      'has an operation twice',
      (state) => Object.assign(state.vm.agent, { others: [command(state)['operation']] }),
    ],
    ['has an operation 0', (state) => Object.assign(state.vm.agent, { abandoned: [0] })],
    ['has a command without arguments', (state) => Object.assign(command(state), { command: [] })],
    ['has a command of numbers', (state) => Object.assign(command(state), { command: [1] })],
    ['has a pid out of range', (state) => Object.assign(command(state), { pid: 2 ** 31 })],
    ['has a terminal that is no flag', (state) => Object.assign(command(state), { pty: {} })],
    ['has streams that are no flags', (state) => Object.assign(command(state), { stdin: 1 })],
    [
      'has a window before its offset',
      (state) => Object.assign(command(state), { output: { received: 5, limit: 4, ended: false } }),
    ],
    [
      'has a window without end',
      (state) =>
        Object.assign(command(state), { error: { received: 0, limit: 2 ** 40, ended: false } }),
    ],
    [
      'has an offset out of range',
      (state) =>
        Object.assign(command(state), { input: { sent: 2 ** 53, limit: 2 ** 53, ended: false } }),
    ],
    ['has no offsets', (state) => Object.assign(command(state), { input: null })],
  ])('cannot be loaded: it %s', async (_, change) => {
    const { directory, state } = await savedState();
    change(state);
    writeFileSync(path.join(directory, 'session'), JSON.stringify(state));

    await expect(Snapshot.load(directory)).rejects.toMatchObject({
      code: 'ERR_VM_BAD_SNAPSHOT',
      message: expect.stringMatching(/^The snapshot's state cannot be used: /),
    });
  });

  test.each([
    ['empty', ''],
    ['no JSON', '{'],
    ['no object', '[]'],
    ['null', 'null'],
    ['no text', Buffer.from([0x22, 0xff, 0x22])],
  ])('cannot be loaded: it is %s', async (_, contents) => {
    const directory = path.join(root, 'one');
    await snapshot.save(directory);
    writeFileSync(path.join(directory, 'session'), contents);

    await expect(Snapshot.load(directory)).rejects.toMatchObject({ code: 'ERR_VM_BAD_SNAPSHOT' });
  });

  test('is loaded as it is where it is in order', async () => {
    const { directory, state } = await savedState();
    Object.assign(state.vm, { env: JSON.parse('{"__proto__": "own", "A": ""}') });
    writeFileSync(path.join(directory, 'session'), JSON.stringify(state));
    await using loaded = await Snapshot.load(directory);
    await using fork = await loaded.fork();
    const started = fork.exec('true');
    await started.started;

    expect(fake.lastVm.frames[0]?.payload.toString()).toContain('__proto__=own');
    fake.lastVm.exit(fake.lastVm.frames[0]?.id ?? 0, 0);
    await started;
    expect(({} as { A?: string }).A).toBeUndefined();
  });
});

describe('Snapshot.ensure()', () => {
  const cache = (): string[] =>
    readdirSync(path.join(root, 'forklet', 'snapshots')).filter((name) => !name.startsWith('.'));
  const boots = (): number => fake.log.filter((call) => call === 'createVm').length;

  beforeEach(() => {
    vi.stubEnv('FORKLET_CACHE', root);
  });

  afterEach(() => {
    fake.hanging.clear();
    fake.failing.clear();
    vi.unstubAllEnvs();
  });

  test('makes a snapshot once', async () => {
    const stages: string[] = [];
    const prepare = vi.fn(async (made: Vm) => void (await made.snapshot()).close());
    const recipe = {
      key: 'mine',
      options: { hostname: 'warm' },
      prepare,
      onProgress: ({ stage }: { stage: string }) => stages.push(stage),
    };
    await using first = await Snapshot.ensure(recipe);
    await using second = await Snapshot.ensure(recipe);
    await delay(1);

    expect(prepare).toHaveBeenCalledTimes(1);
    expect(boots()).toBe(1);
    expect(second.id).toBe(first.id);
    expect(first.label).toBe('mine');
    expect(stages).toEqual(['boot', 'prepare', 'snapshot', 'save', 'load', 'load']);
    expect(fake.vms.size).toBe(1);
    expect(cache()).toHaveLength(2);
  });

  test.each([
    ['key', { key: 'other' }],
    ['options', { key: 'mine', options: { vcpus: 2 } }],
    ['environment', { key: 'mine', options: { env: { A: '1' } } }],
    ['place', { key: 'mine', at: 'program' as const }],
  ])('makes another one for another %s', async (_, other) => {
    fake.program = (input) => input;
    await using first = await Snapshot.ensure({ key: 'mine' });
    await using second = await Snapshot.ensure(other);
    fake.program = undefined;

    expect(boots()).toBe(2);
    expect(second.id).not.toBe(first.id);
  });

  test('makes one for all who ask at once', async () => {
    const prepare = vi.fn();
    const all = await Promise.all(
      Array.from({ length: 3 }, () => Snapshot.ensure({ key: 'mine', prepare })),
    );

    expect(prepare).toHaveBeenCalledTimes(1);
    expect(boots()).toBe(1);
    await all[0]?.close();
    await (await all[1]?.fork())?.close();
    await Promise.all(all.map((one) => one.close()));
  });

  test('makes a damaged one again', async () => {
    await using first = await Snapshot.ensure({ key: 'mine' });
    const [name] = cache().filter((entry) => !entry.includes('.'));
    writeFileSync(path.join(root, 'forklet', 'snapshots', name ?? '', 'session'), 'damaged');
    await using second = await Snapshot.ensure({ key: 'mine' });

    expect(boots()).toBe(2);
    expect(second.id).not.toBe(first.id);
  });

  test('keeps nothing when prepare fails, and tries again next time', async () => {
    const failing = new Error('no network');
    await expect(
      Snapshot.ensure({ key: 'mine', prepare: () => Promise.reject(failing) }),
    ).rejects.toBe(failing);

    expect(cache()).toEqual([]);
    expect(fake.vms.size).toBe(1);
    await (await Snapshot.ensure({ key: 'mine' })).close();
  });

  test('keeps nothing when it is aborted', async () => {
    const abort = new AbortController();
    const running = Snapshot.ensure({
      key: 'mine',
      prepare: () => new Promise(() => {}),
      onProgress: ({ stage }) => {
        if (stage === 'prepare') abort.abort('enough');
      },
      signal: abort.signal,
    });

    await expect(running).rejects.toMatchObject({ name: 'AbortError', cause: 'enough' });
    expect(cache()).toEqual([]);
    expect(fake.vms.size).toBe(1);
  });

  test('goes on for the others when one is aborted', async () => {
    const abort = new AbortController();
    let prepared: (() => void) | undefined;
    const prepare = (): Promise<void> =>
      new Promise((resolve) => {
        prepared = resolve;
      });
    const first = Snapshot.ensure({ key: 'mine', prepare, signal: abort.signal });
    first.catch(() => {});
    const second = Snapshot.ensure({ key: 'mine', prepare });
    await vi.waitFor(() => expect(prepared).toBeDefined());
    abort.abort();
    await expect(first).rejects.toMatchObject({ name: 'AbortError' });
    prepared?.();

    await (await second).close();
    expect(boots()).toBe(1);
  });

  test('refuses a cache that others can write to', async () => {
    await (await Snapshot.ensure({ key: 'mine' })).close();
    const { chmodSync } = await import('node:fs');
    chmodSync(path.join(root, 'forklet', 'snapshots'), 0o777);

    await expect(Snapshot.ensure({ key: 'mine' })).rejects.toMatchObject({
      code: 'ERR_VM_BAD_SNAPSHOT',
      message: expect.stringContaining('can be written to by others'),
    });
  });

  test.each([
    ['nothing', undefined],
    ['no key', {}],
    ['an empty key', { key: '' }],
    ['an unknown field', { key: 'x', prepared: true }],
    ['a wrong option of the VM', { key: 'x', options: { cpus: 1 } }],
    ['a signal among the options', { key: 'x', options: { signal: AbortSignal.abort() } }],
    ['prepare that is no function', { key: 'x', prepare: 'sleep 1' }],
    ['an unknown place', { key: 'x', at: 'home' }],
  ])('refuses %s', async (_, recipe) => {
    await expect(Snapshot.ensure(recipe as never)).rejects.toBeInstanceOf(TypeError);
    expect(fake.log).toEqual([]);
  });
});
