import * as fs from 'node:fs';
import { join } from 'node:path';

import { beforeEach, describe, expect, test } from 'vitest';

import {
  encodeCancel,
  encodeData,
  encodeEnd,
  encodePack,
  encodeUnpack,
  encodeWindow,
  INPUT_WINDOW_BYTES,
  Stream,
} from '../../lib/internal/protocol/protocol.js';
import { Canary } from '../helpers/canary.js';
import { type Collected, type HostAgent, WIDE_OPEN } from '../helpers/host-agent.js';
import { Random } from '../helpers/random.js';
import { sharedAgentWithDirectories } from '../helpers/shared-agent.js';
import * as trees from '../helpers/tree-streams.js';
import { directory, end, file, leave, link, run, symlink, tree } from '../helpers/tree-streams.js';

// What the agent makes of trees that a broken host sends, and how it sends its own, with sanitizers.

const CASES = Number(process.env['FORKLET_TREE_FUZZ_CASES'] ?? 2000);
const FIRST_SEED = Number(process.env['FORKLET_FUZZ_SEED'] ?? 1);

const ENOENT = 2;
const EISDIR = 21;
const ENOTDIR = 20;
const EPROTO = 71;
const ECANCELED = 125;

let agent: HostAgent;
let directoryOfTest: string;

sharedAgentWithDirectories((...given) => {
  [agent, directoryOfTest] = given;
});

let canary: Canary;

beforeEach(async () => {
  canary = new Canary(directoryOfTest);
  // An agent that answers has all of its own descriptors, which tests count.
  await agent.readdir(directoryOfTest);
});

async function unpack(stream: Uint8Array, path = canary.target): Promise<Collected> {
  const operation = agent.start((id) => encodeUnpack(id, path), INPUT_WINDOW_BYTES);
  // One that fails ends before all is through.
  await agent.feed(operation, stream).catch(() => {});
  return operation.done;
}

function descriptors(): string[] {
  return fs.readdirSync(`/proc/${agent.pid}/fd`);
}

/** Descriptors that an operation left; the agent may still be about to close one. */
async function settledDescriptors(count: number): Promise<number> {
  for (let i = 0; i < 50 && descriptors().length !== count; i++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return descriptors().length;
}

describe('unpack', () => {
  test.each([
    ['a path for a name', tree(file('a/b', 'x'))],
    ['a name that leads up', tree(file('../outside/new', 'x'))],
    ['..', tree(directory('..'), leave())],
    ['.', tree(file('.'))],
    ['no name', tree(file(''))],
    ['a name with NUL', tree(file('a\0b'))],
    ['a name that is too long', tree(file('x'.repeat(256)))],
    ['a top with a name', Buffer.concat([directory('a'), leave(), end()])],
    ['a symbolic link for a tree', Buffer.concat([symlink('', '/etc'), end()])],
    ['a hard link for a tree', Buffer.concat([link('', 0), end()])],
    ['a hard link to no file', tree(link('a', 0))],
    ['setuid', tree(file('a', '', { mode: 0o4755 }))],
    ['a symbolic link with NUL', tree(symlink('a', 'x\0'))],
    ['a symbolic link that says nothing', tree(symlink('a', ''))],
    ['a symbolic link that is too long', tree(symlink('a', 'x'.repeat(4096)))],
    ['a run beyond the size', tree(Buffer.concat([file('a', '', { size: 1 }), run(0, 'xx')]))],
    [
      'runs that go back',
      tree(Buffer.concat([file('a', '', { size: 9 }), run(5, 'x'), run(4, 'x')])),
    ],
    ['an end inside of a directory', Buffer.concat([directory(''), end()])],
    ['a leave too many', Buffer.concat([directory(''), leave(), leave(), end()])],
    ['a second tree', Buffer.concat([directory(''), leave(), directory('')])],
    ['bytes behind the end', Buffer.concat([tree(), Buffer.alloc(1)])],
    ['nothing', Buffer.alloc(0)],
    ['half a tree', directory('')],
    ['half an entry', directory('').subarray(0, 20)],
  ])('refuses %s', async (_what, stream) => {
    const before = descriptors().length;

    expect((await unpack(stream)).errno).toBe(EPROTO);

    expect(canary.harm).toBe('');
    expect(await settledDescriptors(before)).toBe(before);
  });

  test('writes through no link, sent before or there already', async () => {
    const through = tree(symlink('a', '../outside'), directory('a'), file('new'), leave());
    expect(await unpack(through)).toMatchObject({ errno: ENOTDIR, path: Buffer.from('a') });

    await unpack(tree(symlink('b', '../outside/file'), file('b', 'new')));
    expect(fs.readFileSync(join(canary.target, 'b'), 'utf8')).toBe('new');

    fs.symlinkSync('outside', join(canary.root, 'target-link'));
    expect((await unpack(tree(file('new')), join(canary.root, 'target-link'))).errno).toBe(ENOTDIR);
    fs.unlinkSync(join(canary.root, 'target-link'));
    expect(canary.harm).toBe('');
  });

  test('does not make a hard link through a directory that has become a link', async () => {
    const operation = agent.start((id) => encodeUnpack(id, canary.target), INPUT_WINDOW_BYTES);
    const first = Buffer.concat([
      directory(''),
      directory('d'),
      file('file', 'x', { linked: true }),
      leave(),
    ]);
    agent.send(encodeData(operation.id, 0, first));
    while (!fs.existsSync(join(canary.target, 'd/file'))) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    fs.renameSync(join(canary.target, 'd'), join(canary.target, 'e'));
    fs.symlinkSync('../outside', join(canary.target, 'd'));

    agent.send(encodeData(operation.id, first.length, link('b', 0)));

    expect(await operation.done).toMatchObject({ errno: ENOTDIR, path: Buffer.from('b') });
    expect(canary.harm).toBe('');
  });

  test('does not go up into a directory that it has not come from', async () => {
    const operation = agent.start((id) => encodeUnpack(id, canary.target), INPUT_WINDOW_BYTES);
    const first = Buffer.concat([directory(''), directory('d'), file('file', 'x')]);
    agent.send(encodeData(operation.id, 0, first));
    while (!fs.existsSync(join(canary.target, 'd/file'))) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    const elsewhere = join(canary.root, 'outside-2');
    fs.mkdirSync(elsewhere);
    fs.renameSync(join(canary.target, 'd'), join(elsewhere, 'd'));

    agent.send(encodeData(operation.id, first.length, Buffer.concat([leave(), file('new')])));

    expect(await operation.done).toMatchObject({ errno: ENOENT });
    expect(fs.readdirSync(elsewhere)).toEqual(['d']);
  });

  test('says where it failed, and removes nothing that was complete', async () => {
    fs.mkdirSync(join(canary.target, 'b/inner'), { recursive: true });
    const stream = tree(file('a', 'x'), directory('b'), file('inner', 'x'), leave());

    expect(await unpack(stream)).toMatchObject({ errno: EISDIR, path: Buffer.from('b/inner') });
    expect(fs.readFileSync(join(canary.target, 'a'), 'utf8')).toBe('x');
  });

  test('removes half a file when it is cancelled, and lets go of everything', async () => {
    const before = descriptors().length;
    const operation = agent.start((id) => encodeUnpack(id, canary.target), INPUT_WINDOW_BYTES);
    const half = Buffer.concat([
      directory(''),
      file('a', 'x'),
      file('b', '', { size: 100 }),
      run(0, 'half'),
    ]);
    agent.send(encodeData(operation.id, 0, half));
    while (!fs.existsSync(join(canary.target, 'b'))) {
      await new Promise((resolve) => setImmediate(resolve));
    }

    agent.send(encodeCancel(operation.id));

    expect((await operation.done).errno).toBe(ECANCELED);
    expect(fs.readdirSync(canary.target)).toEqual(['a']);
    expect(await settledDescriptors(before)).toBe(before);
  });

  test('understands a tree in single bytes', async () => {
    const stream = tree(directory('a'), file('b', 'contents'), leave(), symlink('c', 'd'));
    const operation = agent.start((id) => encodeUnpack(id, canary.target), INPUT_WINDOW_BYTES);
    for (let at = 0; at < stream.length; at++) {
      agent.send(encodeData(operation.id, at, stream.subarray(at, at + 1)));
    }
    agent.send(encodeEnd(operation.id, stream.length));

    expect((await operation.done).errno).toBe(0);
    expect(fs.readFileSync(join(canary.target, 'a/b'), 'utf8')).toBe('contents');
  });

  test('refuses input beyond its window, and at a wrong offset', async () => {
    const wrong = agent.start((id) => encodeUnpack(id, canary.target));
    agent.send(encodeData(wrong.id, 1, Buffer.alloc(1)));
    expect((await wrong.done).errno).toBe(EPROTO);

    const beyond = agent.start((id) => encodeUnpack(id, canary.target));
    agent.send(
      encodeData(beyond.id, 0, Buffer.alloc(65536)),
      encodeData(beyond.id, 65536, Buffer.alloc(65536)),
    );
    expect((await beyond.done).errno).toBe(EPROTO);
  });

  test('lets others have their turn while it has much to make', async () => {
    const files = Array.from({ length: 1000 }, (_, i) => file(String(i), 'x'));
    const operation = agent.start((id) => encodeUnpack(id, canary.target), INPUT_WINDOW_BYTES);
    agent.send(encodeData(operation.id, 0, tree(...files).subarray(0, INPUT_WINDOW_BYTES)));

    await agent.exec(['true']);

    // Some are made, and by far not all.
    const made = fs.existsSync(canary.target) ? fs.readdirSync(canary.target).length : 0;
    expect(made).toBeLessThan(900);
    agent.send(encodeCancel(operation.id));
    await operation.done;
  });

  test('random and mutated trees, and random bytes, reach nothing outside', async () => {
    const before = descriptors().length;
    const outcomes = new Set<number>();
    for (let seed = FIRST_SEED; seed < FIRST_SEED + CASES; seed++) {
      const random = new Random(seed);
      const kind = random.below(5);
      const stream =
        kind < 2
          ? trees.randomTree(random, canary.targets)
          : kind < 4
            ? trees.mutated(random, trees.validTree(random, canary.targets))
            : Buffer.from(Array.from({ length: random.below(300) }, () => random.below(256)));
      if (random.below(8) === 0) canary.clear();

      outcomes.add((await unpack(stream)).errno);

      expect({ seed, harm: canary.harm }).toEqual({ seed, harm: '' });
    }
    expect([...outcomes]).toEqual(expect.arrayContaining([0, EPROTO, ENOTDIR, EISDIR]));
    expect(await settledDescriptors(before)).toBe(before);
  }, 120_000);
});

describe('pack', () => {
  async function pack(path: string, limit = WIDE_OPEN): Promise<Collected> {
    return agent.start((id) => encodePack(id, path, { outputLimit: limit })).done;
  }

  test('sends what unpack understands', async () => {
    const random = new Random(FIRST_SEED);
    await unpack(trees.validTree(random, canary.targets));

    const sent = await pack(canary.target);
    const again = await unpack(sent.stdout, join(canary.root, 'target'));

    expect(again.errno).toBe(0);
    expect((await pack(canary.target)).stdout.length).toBe(sent.stdout.length);
  });

  test.each([1, 7, 1000, 5000])('sends the same through a window of %d bytes', async (step) => {
    await unpack(tree(file('a', 'x'.repeat(3000)), directory('b'), leave(), symlink('c', 'd')));
    const whole = (await pack(canary.target)).stdout;

    const operation = agent.start((id) => encodePack(id, canary.target, { outputLimit: 0 }));
    for (let limit = step; limit < whole.length + step; limit += step) {
      agent.send(encodeWindow(operation.id, Stream.output, limit));
      const expected = Math.min(limit, whole.length);
      await operation.until((now) => now.received(Stream.output).length >= expected);
      expect(operation.received(Stream.output)).toHaveLength(expected);
    }

    // Runs are as long as the window let them be, so that the bytes are others.
    const slow = await operation.done;
    expect(slow.errno).toBe(0);
    expect((await unpack(slow.stdout, join(canary.root, 'target'))).errno).toBe(0);
    expect(fs.readFileSync(join(canary.target, 'a'), 'utf8')).toBe('x'.repeat(3000));
  });

  test('fails with an errno for what is no file, and lets go when it is cancelled', async () => {
    const before = descriptors().length;
    expect((await pack('/dev/null')).errno).toBe(22);
    expect((await pack(join(canary.root, 'nothing'))).errno).toBe(ENOENT);

    const operation = agent.start((id) => encodePack(id, canary.outside, { outputLimit: 100 }));
    await operation.until((now) => now.received(Stream.output).length === 100);
    agent.send(encodeCancel(operation.id));

    expect((await operation.done).errno).toBe(ECANCELED);
    expect(await settledDescriptors(before)).toBe(before);
  });
});
