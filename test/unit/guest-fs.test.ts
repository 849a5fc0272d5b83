import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import * as host from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { AgentGuest } from '../helpers/agent-guest.js';

// The guest's files are files of this machine here, so node:fs itself is the reference.

let guest: AgentGuest;

beforeAll(async () => {
  guest = await AgentGuest.start();
  await host.writeFile(guest.path('text'), 'grüße\n');
  await host.mkdir(guest.path('tree/inner'), { recursive: true });
  await host.writeFile(guest.path('tree/file'), '');
  await host.symlink('file', guest.path('tree/link'));
});

afterAll(async () => {
  await guest.stop();
});

function failure(promise: Promise<unknown>): Promise<NodeJS.ErrnoException> {
  return promise.then(
    () => {
      throw new Error('did not fail');
    },
    (error: NodeJS.ErrnoException) => error,
  );
}

describe('readFile()', () => {
  test('returns a Buffer without encoding and a string with one', async () => {
    expect(await guest.fs.readFile(guest.path('text'))).toEqual(Buffer.from('grüße\n'));
    expect(await guest.fs.readFile(guest.path('text'), 'utf8')).toBe('grüße\n');
    expect(await guest.fs.readFile(guest.path('text'), { encoding: 'base64' })).toBe(
      'Z3LDvMOfZQo=',
    );
  });

  test('reads files of any size unharmed', async () => {
    const content = randomBytes(7_654_321);
    await host.writeFile(guest.path('large'), content);

    const read = await guest.fs.readFile(guest.path('large'));

    expect(createHash('sha256').update(read).digest('hex')).toBe(
      createHash('sha256').update(content).digest('hex'),
    );
  });

  test('reads files whose size stat does not know', async () => {
    expect(await guest.fs.readFile('/proc/self/status', 'utf8')).toContain('Name:');
  });

  test('refuses a file larger than maxBytes, as soon as it is', async () => {
    await expect(guest.fs.readFile('/dev/zero', { maxBytes: 100_000 })).rejects.toMatchObject({
      name: 'RangeError',
      code: 'ERR_FS_FILE_TOO_LARGE',
    });
    await host.writeFile(guest.path('ten'), '0123456789');
    expect(await guest.fs.readFile(guest.path('ten'), { maxBytes: 10 })).toHaveLength(10);
    await expect(guest.fs.readFile(guest.path('ten'), { maxBytes: 9 })).rejects.toThrow(RangeError);
  });

  test('rejects with AbortError when aborted, after the guest has let go', async () => {
    await expect(
      guest.fs.readFile('/dev/zero', { signal: AbortSignal.timeout(50) }),
    ).rejects.toMatchObject({ name: 'AbortError', code: 'ABORT_ERR' });
    await expect(
      guest.fs.readFile(guest.path('text'), { signal: AbortSignal.abort() }),
    ).rejects.toMatchObject({ name: 'AbortError' });
  });
});

describe('writeFile()', () => {
  test('creates and truncates', async () => {
    await guest.fs.writeFile(guest.path('new'), 'long content');
    await guest.fs.writeFile(guest.path('new'), 'short');

    expect(await host.readFile(guest.path('new'), 'utf8')).toBe('short');
    expect((await host.stat(guest.path('new'))).mode & 0o777).toBe(0o644);
  });

  test('creates with the mode asked for', async () => {
    await guest.fs.writeFile(guest.path('script'), '#!/bin/sh\necho ran', { mode: 0o755 });

    expect((await guest.exec([guest.path('script')])).stdout).toBe('ran\n');
  });

  test('appends with flag a, and refuses an existing file with wx', async () => {
    await guest.fs.writeFile(guest.path('log'), 'a');
    await guest.fs.writeFile(guest.path('log'), 'b', { flag: 'a' });

    expect(await guest.fs.readFile(guest.path('log'), 'utf8')).toBe('ab');
    expect(await failure(guest.fs.writeFile(guest.path('log'), '', { flag: 'wx' }))).toMatchObject({
      code: 'EEXIST',
      syscall: 'open',
    });
  });

  test('writes strings in the encoding given', async () => {
    await guest.fs.writeFile(guest.path('hex'), 'ff00', 'hex');

    expect(await host.readFile(guest.path('hex'))).toEqual(Buffer.from([0xff, 0]));
  });

  test('writes typed arrays by their bytes', async () => {
    await guest.fs.writeFile(guest.path('typed'), new Uint16Array([1, 2]).subarray(1));

    expect(await host.readFile(guest.path('typed'))).toEqual(Buffer.from([2, 0]));
  });

  test('writes megabytes unharmed', async () => {
    const content = randomBytes(5_000_001);

    await guest.fs.writeFile(guest.path('big'), content);

    expect((await host.readFile(guest.path('big'))).equals(content)).toBe(true);
  });

  test('writes what streams, iterables and generators yield', async () => {
    await guest.fs.writeFile(guest.path('stream'), createReadStream(guest.path('text')));
    await guest.fs.writeFile(guest.path('iterable'), ['a', Buffer.from('b'), '', 'c']);
    await guest.fs.writeFile(
      guest.path('generator'),
      (async function* () {
        yield 'x';
        await delay(10);
        yield 'y';
      })(),
    );

    expect(await host.readFile(guest.path('stream'), 'utf8')).toBe('grüße\n');
    expect(await host.readFile(guest.path('iterable'), 'utf8')).toBe('abc');
    expect(await host.readFile(guest.path('generator'), 'utf8')).toBe('xy');
  });

  test('rejects with the error of a source that fails', async () => {
    const broken = new Error('source broke');

    const write = guest.fs.writeFile(
      guest.path('broken'),
      (async function* () {
        yield 'x';
        throw broken;
      })(),
    );

    await expect(write).rejects.toBe(broken);
  });

  test('rejects at once with the guest’s error while the source still waits', async () => {
    const never = (async function* () {
      await new Promise(() => {});
      yield 'x';
    })();

    expect(await failure(guest.fs.writeFile('/nowhere/file', never))).toMatchObject({
      code: 'ENOENT',
    });
  });
});

describe('readdir()', () => {
  test('lists names, Buffers or Dirents', async () => {
    const directory = guest.path('tree');

    expect((await guest.fs.readdir(directory)).sort()).toEqual(['file', 'inner', 'link']);
    expect((await guest.fs.readdir(directory, 'buffer')).map(String).sort()).toEqual([
      'file',
      'inner',
      'link',
    ]);
    const entries = await guest.fs.readdir(directory, { withFileTypes: true });
    const kinds = Object.fromEntries(
      entries.map((entry) => [
        entry.name,
        [entry.isFile(), entry.isDirectory(), entry.isSymbolicLink()],
      ]),
    );
    expect(kinds).toEqual({
      file: [true, false, false],
      inner: [false, true, false],
      link: [false, false, true],
    });
    expect(entries[0]?.parentPath).toBe(directory);
  });

  test('lists thousands of names', async () => {
    await guest.fs.mkdir(guest.path('many'));
    await guest.exec('i=0; while [ $i -lt 3000 ]; do : >entry-$i; i=$((i+1)); done', {
      cwd: guest.path('many'),
    });

    expect((await guest.fs.readdir(guest.path('many'))).length).toBe(3000);
  });

  test('keeps names that are not UTF-8 as Buffers, which paths can be', async () => {
    const name = Buffer.from([0x66, 0xff]);
    const file = Buffer.concat([Buffer.from(`${guest.path('tree/inner')}/`), name]);
    await guest.fs.writeFile(file, 'odd');

    expect(await guest.fs.readdir(guest.path('tree/inner'), 'buffer')).toEqual([name]);
    expect(await guest.fs.readFile(file, 'utf8')).toBe('odd');
    await guest.fs.rm(file);
  });
});

describe('stat() and lstat()', () => {
  test('have every field that node:fs has, with its value', async () => {
    for (const [ours, nodes] of [
      [await guest.fs.stat(guest.path('text')), await host.stat(guest.path('text'))],
      [
        await guest.fs.lstat(guest.path('tree/link'), { bigint: true }),
        await host.lstat(guest.path('tree/link'), { bigint: true }),
      ],
    ] as const) {
      for (const key of Object.keys(nodes) as (keyof typeof nodes)[]) {
        expect([key, ours[key]]).toEqual([key, nodes[key]]);
      }
    }
  });

  test('follow links, or do not', async () => {
    expect((await guest.fs.stat(guest.path('tree/link'))).isFile()).toBe(true);
    expect((await guest.fs.lstat(guest.path('tree/link'))).isSymbolicLink()).toBe(true);
  });

  test('know devices', async () => {
    expect((await guest.fs.stat('/dev/null')).isCharacterDevice()).toBe(true);
  });
});

describe('mkdir() and rm()', () => {
  test('create and remove trees', async () => {
    await guest.fs.mkdir(guest.path('a/b/c'), { recursive: true });
    await guest.fs.mkdir(guest.path('a/b/c'), { recursive: true });
    await guest.fs.mkdir(guest.path('private'), { mode: 0o700 });

    expect((await host.stat(guest.path('a/b/c'))).isDirectory()).toBe(true);
    expect((await host.stat(guest.path('private'))).mode & 0o777).toBe(0o700);

    await guest.fs.rm(guest.path('a'), { recursive: true });

    expect(await guest.fs.readdir(guest.directory)).not.toContain('a');
  });

  test('rm() with force takes a missing path', async () => {
    await guest.fs.rm(guest.path('missing'), { force: true });
  });

  test('rm() removes a link and not what it points to', async () => {
    await host.symlink('/etc', guest.path('etc'));

    await guest.fs.rm(guest.path('etc'), { recursive: true });

    expect((await host.stat('/etc/passwd')).isFile()).toBe(true);
  });
});

describe('failures', () => {
  test.each([
    ['readFile', 'missing', () => guest.fs.readFile(guest.path('missing')), 'ENOENT', 'open'],
    ['readFile', 'tree', () => guest.fs.readFile(guest.path('tree')), 'EISDIR', 'read'],
    ['writeFile', 'tree', () => guest.fs.writeFile(guest.path('tree'), ''), 'EISDIR', 'open'],
    ['readdir', 'text', () => guest.fs.readdir(guest.path('text')), 'ENOTDIR', 'scandir'],
    ['stat', 'missing', () => guest.fs.stat(guest.path('missing')), 'ENOENT', 'stat'],
    ['lstat', 'missing', () => guest.fs.lstat(guest.path('missing')), 'ENOENT', 'lstat'],
    ['mkdir', 'tree', () => guest.fs.mkdir(guest.path('tree')), 'EEXIST', 'mkdir'],
    ['rm', 'missing', () => guest.fs.rm(guest.path('missing')), 'ENOENT', 'rm'],
    ['rm', 'tree', () => guest.fs.rm(guest.path('tree')), 'ERR_FS_EISDIR', 'rm'],
  ])('%s of %s has the shape of node:fs', async (_, name, call, code, syscall) => {
    const error = await failure(call());

    expect(error).toBeInstanceOf(Error);
    expect(error).toMatchObject({ code, syscall, path: guest.path(name) });
    expect(error.errno).toBeLessThan(0);
  });

  test('have the message that node:fs has', async () => {
    const path = guest.path('missing');

    const ours = await failure(guest.fs.stat(path));

    expect(ours.message).toBe((await failure(host.stat(path))).message);
  });

  test('have the caller in their stack', async () => {
    const read = async (): Promise<void> => {
      await guest.fs.readFile(guest.path('missing'));
    };

    expect((await failure(read())).stack).toContain('guest-fs.test.ts');
  });
});

describe('arguments', () => {
  test.each([
    ['a path of a wrong type', () => guest.fs.readFile(1 as never), TypeError, 'path'],
    ['NUL in a path', () => guest.fs.stat('a\0b'), TypeError, 'NUL'],
    ['an endless path', () => guest.fs.stat('a'.repeat(40_000)), RangeError, 'path'],
    [
      'an unknown option',
      () => guest.fs.rm('/x', { recursiv: true } as never),
      TypeError,
      '"recursive"',
    ],
    ['a wrong encoding', () => guest.fs.readFile('/x', 'utf9' as never), TypeError, 'encoding'],
    [
      'a wrong flag',
      () => guest.fs.writeFile('/x', '', { flag: 'r+' as never }),
      TypeError,
      'flag',
    ],
    ['data of a wrong type', () => guest.fs.writeFile('/x', 5 as never), TypeError, 'data'],
    ['a mode out of range', () => guest.fs.mkdir('/x', { mode: 0o10000 }), RangeError, 'mode'],
    [
      'maxBytes out of range',
      () => guest.fs.readFile('/x', { maxBytes: -1 }),
      RangeError,
      'maxBytes',
    ],
  ])('refuse %s and name it', async (_, call, type, name) => {
    const error = await failure(call());

    expect(error).toBeInstanceOf(type);
    expect(error.message).toContain(name);
  });
});

test('operations release the event loop when they are done', async () => {
  await Promise.all([
    guest.fs.stat('/'),
    guest.fs.readdir('/'),
    failure(guest.fs.readFile('/nope')),
  ]);

  expect(guest.hold.held).toBe(0);
});
