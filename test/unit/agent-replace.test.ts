import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';

import { describe, expect, test } from 'vitest';

import {
  encodeCancel,
  encodeCopyFile,
  encodeData,
  encodeWriteFile,
  FILE_WINDOW_BYTES,
  type WriteFileRequest,
} from '../../lib/internal/protocol/protocol.js';
import type { HostAgent } from '../helpers/host-agent.js';
import { sharedAgentWithDirectories } from '../helpers/shared-agent.js';

const { ECANCELED, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOSPC, EPROTO, ESPIPE } =
  constants.errno;

let agent: HostAgent;
let directory: string;

sharedAgentWithDirectories((...made) => {
  [agent, directory] = made;
});

function path(name: string): string {
  return join(directory, name);
}

function file(name: string, contents: string | Buffer = ''): string {
  writeFileSync(path(name), contents);
  return path(name);
}

function text(name: string): string {
  return readFileSync(path(name), 'utf8');
}

async function write(name: string, contents: string, request: WriteFileRequest): Promise<number> {
  return (await agent.writeFile(path(name), Buffer.from(contents), request)).errno;
}

describe('writing in place', () => {
  test('at an offset keeps the rest with update, and has zeros before it without', async () => {
    file('kept', '0123456789');
    file('cut', '0123456789');

    expect(await write('kept', 'xx', { update: true, start: 4 })).toBe(0);
    expect(await write('cut', 'xx', { start: 4 })).toBe(0);

    expect(text('kept')).toBe('0123xx6789');
    expect(text('cut')).toBe('\0\0\0\0xx');
  });

  test('with update fails for a missing file', async () => {
    expect(await write('none', 'x', { update: true })).toBe(ENOENT);
  });

  test('at an offset fails where there are none', async () => {
    const held = agent.spawn([
      'sh',
      '-c',
      `mkfifo ${path('fifo')}; exec 3<>${path('fifo')}; echo; sleep 60`,
    ]);
    await held.until((o) => o.received(1).length > 0);

    expect(await write('fifo', 'x', { update: true, start: 4 })).toBe(ESPIPE);

    agent.send(encodeCancel(held.id));
    await held.done;
  });

  test.each<WriteFileRequest>([
    { append: true, update: true },
    { append: true, atomic: true },
    { update: true, exclusive: true },
    { append: true, start: 1 },
    { atomic: true, start: 1 },
    { start: 2 ** 63 },
  ])('is refused for %j, which makes no sense', async (request) => {
    expect(await write('x', 'x', request)).toBe(EPROTO);

    expect(readdirSync(directory)).toEqual([]);
  });
});

describe('atomic writing', () => {
  test('makes a new file with the mode that any new one has', async () => {
    expect(await write('new', 'contents', { atomic: true })).toBe(0);
    expect(await write('script', '', { atomic: true, mode: 0o777 })).toBe(0);

    expect(text('new')).toBe('contents');
    expect(statSync(path('new')).mode & 0o777).toBe(0o644);
    expect(statSync(path('script')).mode & 0o777).toBe(0o755);
    expect(readdirSync(directory).sort()).toEqual(['new', 'script']);
  });

  test('replaces a file at its end, keeping its mode', async () => {
    chmodSync(file('old', 'old'), 0o6751);
    const inode = statSync(path('old')).ino;
    const request = { atomic: true, mode: 0o600 };
    const operation = agent.start(
      (id) => encodeWriteFile(id, path('old'), request),
      FILE_WINDOW_BYTES,
    );
    agent.send(encodeData(operation.id, 0, Buffer.from('n')));
    await agent.readFile('/proc/self/comm');
    expect(text('old')).toBe('old');
    expect(readdirSync(directory)).toHaveLength(2);
    operation.inputSent = 1;

    await agent.feed(operation, Buffer.from('new'));

    expect(await operation.done).toMatchObject({ errno: 0 });
    expect(text('old')).toBe('new');
    expect(statSync(path('old')).mode & 0o7777).toBe(0o6751);
    expect(statSync(path('old')).ino).not.toBe(inode);
    expect(readdirSync(directory)).toEqual(['old']);
  });

  test('leaves nothing when it is cancelled, or when the file cannot take its place', async () => {
    const cancelled = agent.start((id) => encodeWriteFile(id, path('a'), { atomic: true }));
    const blocked = agent.start((id) => encodeWriteFile(id, path('b'), { atomic: true }));
    await agent.readFile('/proc/self/comm');
    expect(readdirSync(directory)).toHaveLength(2);
    mkdirSync(path('b'));

    agent.send(encodeCancel(cancelled.id));
    await agent.feed(blocked, Buffer.alloc(0));

    expect(await cancelled.done).toMatchObject({ errno: ECANCELED });
    expect(await blocked.done).toMatchObject({ errno: EISDIR });
    expect(readdirSync(directory)).toEqual(['b']);
  });

  test('replaces what a link leads to, and not the link', async () => {
    mkdirSync(path('elsewhere'));
    symlinkSync('elsewhere/link', path('first'));
    symlinkSync('../target', path('elsewhere/link'));
    symlinkSync('circle', path('circle'));

    expect(await write('first', 'one', { atomic: true })).toBe(0);
    expect(text('target')).toBe('one');
    expect(await write('first', 'two', { atomic: true })).toBe(0);

    expect(text('target')).toBe('two');
    expect(lstatSync(path('first')).isSymbolicLink()).toBe(true);
    expect(lstatSync(path('elsewhere/link')).isSymbolicLink()).toBe(true);
    expect(await write('circle', '', { atomic: true })).toBe(ELOOP);
  });

  test('when exclusive, refuses what is there at its beginning or at its end', async () => {
    symlinkSync('/nowhere', path('dangling'));
    const request = { atomic: true, exclusive: true };
    const late = agent.start((id) => encodeWriteFile(id, path('late'), request));
    await agent.readFile('/proc/self/comm');
    file('late', 'first');

    await agent.feed(late, Buffer.alloc(0));

    expect(await late.done).toMatchObject({ errno: EEXIST });
    expect(await write('late', '', request)).toBe(EEXIST);
    expect(await write('dangling', '', request)).toBe(EEXIST);
    expect(await write('fresh', 'x', request)).toBe(0);
    expect(text('late')).toBe('first');
    expect(readdirSync(directory).sort()).toEqual(['dangling', 'fresh', 'late']);
  });

  test('fails for directories, devices and missing parents', async () => {
    expect(await write('', 'x', { atomic: true })).toBe(EISDIR);
    expect(await write('no/where', 'x', { atomic: true })).toBe(ENOENT);
    expect((await agent.writeFile('/dev/null', Buffer.from('x'), { atomic: true })).errno).toBe(
      EINVAL,
    );
    expect((await agent.writeFile('', Buffer.from('x'), { atomic: true })).errno).toBe(ENOENT);
  });
});

describe('copying', () => {
  const copy = async (from: string, to: string, options: { exclusive?: boolean } = {}) =>
    (await agent.start((id) => encodeCopyFile(id, from, to, options)).done).errno;

  test.each([0, 1, 65536, 1_000_001])('copies %i bytes and the mode', async (size) => {
    const contents = Buffer.alloc(size, 'some bytes');
    chmodSync(file('from', contents), 0o2741);

    expect(await copy(path('from'), path('to'))).toBe(0);

    expect(readFileSync(path('to')).equals(contents)).toBe(true);
    expect(statSync(path('to')).mode & 0o7777).toBe(0o2741);
  });

  test('replaces the contents of a longer file, also through a link', async () => {
    file('to', 'longer contents');
    symlinkSync('to', path('link'));

    expect(await copy(file('from', 'short'), path('link'))).toBe(0);

    expect(text('to')).toBe('short');
  });

  test('copies files of /proc, whose size is 0', async () => {
    expect(await copy('/proc/cpuinfo', path('cpuinfo'))).toBe(0);

    expect(text('cpuinfo')).toContain('processor');
  });

  test('of a file onto itself leaves it alone', async () => {
    symlinkSync('self', path('alias'));

    expect(await copy(file('self', 'kept'), path('alias'))).toBe(0);

    expect(text('self')).toBe('kept');
  });

  test('when exclusive, refuses what is there', async () => {
    expect(await copy(file('from', 'new'), file('to', 'old'), { exclusive: true })).toBe(EEXIST);
    expect(await copy(path('from'), path('fresh'), { exclusive: true })).toBe(0);

    expect(text('to')).toBe('old');
    expect(text('fresh')).toBe('new');
  });

  test('fails for what is not a file, and leaves nothing', async () => {
    expect(await copy(path('none'), path('x'))).toBe(ENOENT);
    expect(await copy(directory, path('x'))).toBe(EISDIR);
    expect(await copy('/dev/zero', path('x'))).toBe(EINVAL);
    expect(await copy(file('from', 'x'), directory)).toBe(EISDIR);
    expect(await copy(path('from'), '/dev/null')).toBe(EINVAL);
    expect(await copy(path('from'), path('no/where'))).toBe(ENOENT);

    expect(readdirSync(directory)).toEqual(['from']);
  });

  test('can be cancelled, while others go on, and leaves nothing', async () => {
    truncateSync(file('huge'), 2 ** 40);
    const operation = agent.start((id) => encodeCopyFile(id, path('huge'), path('copy')));
    expect(await agent.readFile('/proc/self/comm')).toMatchObject({ errno: 0 });
    expect(readdirSync(directory).sort()).toEqual(['copy', 'huge']);

    agent.send(encodeCancel(operation.id));

    expect([ECANCELED, ENOSPC]).toContain((await operation.done).errno);
    expect(readdirSync(directory)).toEqual(['huge']);
  });
});
