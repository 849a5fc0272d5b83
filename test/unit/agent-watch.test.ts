import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmdirSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';

import { describe, expect, test } from 'vitest';

import {
  encodeCancel,
  encodeWatch,
  encodeWindow,
  Stream,
  WatchDecoder,
  WatchEvent,
} from '../../lib/internal/protocol/protocol.js';
import { type HostAgent, type TestOperation, WIDE_OPEN } from '../helpers/host-agent.js';
import { sharedAgentWithDirectories } from '../helpers/shared-agent.js';

const { ECANCELED, ENOENT } = constants.errno;
const NAMES = new Map<number, string>(
  Object.entries(WatchEvent).map(([name, number]) => [number, name]),
);

let agent: HostAgent;
let directory: string;
let root: string;

sharedAgentWithDirectories((...made) => {
  [agent, directory, root] = made;
});

function path(name: string): string {
  return join(directory, name);
}

function eventsOf(operation: TestOperation): string[] {
  const events = new WatchDecoder().push(operation.received(Stream.output));
  return events.map(({ type, name }) => `${NAMES.get(type)} ${name}`.trim());
}

/** Starts to watch; resolves when everything that is there is watched. */
async function watch(
  target: string,
  options: { recursive?: boolean; outputLimit?: number } = {},
): Promise<TestOperation> {
  const request = { outputLimit: WIDE_OPEN, ...options };
  const operation = agent.start((id) => encodeWatch(id, target, request));
  await operation.until((o) => eventsOf(o).includes('ready'));
  return operation;
}

async function cancel(operation: TestOperation): Promise<void> {
  agent.send(encodeCancel(operation.id));
  expect(await operation.done).toMatchObject({ errno: ECANCELED });
}

/** Resolves when all of the events have come, whatever else has. */
function seen(operation: TestOperation, ...events: string[]): Promise<void> {
  return operation.until((o) => {
    const all = new Set(eventsOf(o));
    return events.every((event) => all.has(event));
  });
}

function descriptors(): string[] {
  return readdirSync(`/proc/${agent.pid}/fd`).flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${agent.pid}/fd/${fd}`)];
    } catch {
      return [];
    }
  });
}

describe('watching a directory', () => {
  test('tells of entries that come, change and go, and of nothing below', async () => {
    mkdirSync(path('sub'));
    const operation = await watch(directory);

    writeFileSync(path('file'), '');
    appendFileSync(path('file'), 'x');
    writeFileSync(path('sub/hidden'), 'x');
    renameSync(path('file'), path('moved'));
    chmodSync(path('moved'), 0o600);
    unlinkSync(path('moved'));
    await seen(operation, 'change moved');
    writeFileSync(path('last'), '');
    await seen(operation, 'rename last');

    expect(eventsOf(operation).slice(0, 7)).toEqual([
      'ready',
      'rename file',
      'change file',
      'rename file',
      'rename moved',
      'change moved',
      'rename moved',
    ]);
    expect(eventsOf(operation).join()).not.toContain('hidden');
    await cancel(operation);
  });

  test('tells of the directory itself with an empty path, and ends when it is gone', async () => {
    mkdirSync(path('doomed'));
    const operation = await watch(path('doomed'));

    chmodSync(path('doomed'), 0o700);
    await seen(operation, 'change');
    rmdirSync(path('doomed'));

    expect(await operation.done).toMatchObject({ errno: 0 });
    expect(eventsOf(operation)).toEqual(['ready', 'change', 'rename']);
  });

  test('ends when the directory is renamed', async () => {
    mkdirSync(path('before'));
    const operation = await watch(path('before'), { recursive: true });

    renameSync(path('before'), path('after'));

    expect(await operation.done).toMatchObject({ errno: 0 });
    expect(eventsOf(operation)).toEqual(['ready', 'rename']);
  });

  test('of a file tells of its changes, and ends with it', async () => {
    writeFileSync(path('file'), '');
    for (const recursive of [false, true]) {
      const operation = await watch(path('file'), { recursive });
      appendFileSync(path('file'), 'x');
      await seen(operation, 'change');
      unlinkSync(path('file'));

      expect(await operation.done).toMatchObject({ errno: 0 });
      expect(eventsOf(operation).at(-1)).toBe('rename');
      writeFileSync(path('file'), '');
    }
  });

  test('fails for a missing path', async () => {
    const operation = agent.start((id) => encodeWatch(id, path('none')));

    expect(await operation.done).toMatchObject({ errno: ENOENT });
  });

  test('leaves no descriptor behind', async () => {
    const before = descriptors().length;
    const operations = await Promise.all(
      Array.from({ length: 10 }, () => watch(root, { recursive: true })),
    );
    expect(descriptors().length).toBe(before + 10);

    for (const operation of operations) await cancel(operation);

    expect(descriptors().length).toBe(before);
  });
});

describe('watching a tree', () => {
  test('tells of everything below by its path, and follows no link', async () => {
    mkdirSync(path('a/b/c'), { recursive: true });
    mkdirSync(`${directory}-outside`);
    symlinkSync(`${directory}-outside`, path('a/link'));
    const operation = await watch(directory, { recursive: true });

    writeFileSync(path('a/b/c/file'), '');
    writeFileSync(path('a/link/hidden'), '');
    appendFileSync(path('a/b/c/file'), 'x');
    writeFileSync(path('top'), '');
    await seen(operation, 'rename a/b/c/file', 'change a/b/c/file', 'rename top');

    expect(eventsOf(operation).join()).not.toContain('hidden');
    await cancel(operation);
  });

  test('follows new directories, and misses nothing that was in them at once', async () => {
    const operation = await watch(directory, { recursive: true });

    mkdirSync(path('new/deep/er'), { recursive: true });
    writeFileSync(path('new/deep/er/file'), '');
    await seen(
      operation,
      'rename new',
      'rename new/deep',
      'rename new/deep/er',
      'rename new/deep/er/file',
    );
    appendFileSync(path('new/deep/er/file'), 'x');
    writeFileSync(path('new/deep/later'), '');
    await seen(operation, 'change new/deep/er/file', 'rename new/deep/later');

    await cancel(operation);
  });

  test('knows directories by their new path after a move', async () => {
    mkdirSync(path('old/sub'), { recursive: true });
    const operation = await watch(directory, { recursive: true });

    renameSync(path('old'), path('new'));
    await seen(operation, 'rename old', 'rename new', 'rename new/sub');
    writeFileSync(path('new/sub/file'), '');
    await seen(operation, 'rename new/sub/file');

    expect(eventsOf(operation).filter((event) => event.includes('old/'))).toEqual([]);
    await cancel(operation);
  });

  test('no longer tells of what has moved away', async () => {
    mkdirSync(path('leaving'));
    const operation = await watch(directory, { recursive: true });

    renameSync(path('leaving'), `${directory}-left`);
    await seen(operation, 'rename leaving');
    writeFileSync(`${directory}-left/file`, '');
    writeFileSync(path('last'), '');
    await seen(operation, 'rename last');

    expect(eventsOf(operation)).toEqual(expect.not.arrayContaining(['rename leaving/file']));
    await cancel(operation);
  });

  test('goes on when directories are removed and made again', async () => {
    mkdirSync(path('again'));
    const operation = await watch(directory, { recursive: true });

    for (let i = 0; i < 50; i++) {
      rmdirSync(path('again'));
      mkdirSync(path('again'));
      writeFileSync(path(`again/${i}`), '');
      await seen(operation, `rename again/${i}`);
      unlinkSync(path(`again/${i}`));
    }

    await cancel(operation);
  });

  test('of thousands of directories lets others go on', async () => {
    for (let i = 0; i < 3000; i++) mkdirSync(path(`${i % 50}/${i}`), { recursive: true });
    const started = agent.start((id) =>
      encodeWatch(id, directory, { outputLimit: WIDE_OPEN, recursive: true }),
    );
    expect(await agent.readFile('/proc/self/comm')).toMatchObject({ errno: 0 });
    await started.until((o) => eventsOf(o).includes('ready'));

    writeFileSync(path('49/2999/file'), '');
    await seen(started, 'rename 49/2999/file');

    await cancel(started);
  });
});

describe('a window that is shut', () => {
  const LIMIT = Number(readFileSync('/proc/sys/fs/inotify/max_queued_events', 'utf8'));

  test('keeps events waiting, and the next one opens it', async () => {
    const operation = await watch(directory, { outputLimit: 4 });
    for (let i = 0; i < 100; i++) writeFileSync(path(`${i}`), '');
    await agent.readFile('/proc/self/comm');
    expect(eventsOf(operation)).toEqual(['ready']);

    agent.send(encodeWindow(operation.id, Stream.output, WIDE_OPEN));
    await seen(operation, 'rename 99');

    expect(eventsOf(operation)).toHaveLength(101);
    await cancel(operation);
  });

  test('and more events than are kept: says that some are lost, and goes on', async () => {
    mkdirSync(path('sub'));
    const operation = await watch(directory, { outputLimit: 4, recursive: true });
    for (let i = 0; i < LIMIT; i++) {
      writeFileSync(path('sub/a'), '');
      unlinkSync(path('sub/a'));
    }
    mkdirSync(path('unseen'));

    agent.send(encodeWindow(operation.id, Stream.output, WIDE_OPEN));
    await seen(operation, 'overflow');
    // What was lost may have been new directories.
    await expect
      .poll(() => {
        writeFileSync(path('unseen/file'), String(Math.random()));
        return eventsOf(operation).some((event) => event.endsWith('unseen/file'));
      })
      .toBe(true);

    await cancel(operation);
  });
});
