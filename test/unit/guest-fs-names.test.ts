import { constants } from 'node:fs';
import * as host from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { AgentGuest } from '../helpers/agent-guest.js';

// The guest's files are files of this machine here, so node:fs itself is the reference: each call is
// made twice, of the guest's files and of the same ones of the host.

let guest: AgentGuest;
let theirs: string;

beforeAll(async () => {
  guest = await AgentGuest.start();
  theirs = await host.mkdtemp(join(tmpdir(), 'forklet-reference-'));
});

afterAll(async () => {
  await host.rm(theirs, { recursive: true });
  await guest.stop();
});

type Fs = typeof host;

/** What a call comes to, with nothing in it that depends on where it was made. */
async function outcome(fs: Fs, root: string, call: (fs: Fs, root: string) => Promise<unknown>) {
  const strip = (value: unknown): unknown =>
    typeof value === 'string' ? value.replaceAll(root, '').replaceAll(/temp-\w{6}/g, '') : value;
  try {
    return { value: strip(await call(fs, root)) };
  } catch (error) {
    const { code, errno, syscall, path, message } = error as NodeJS.ErrnoException;
    const { dest } = error as { dest?: string };
    return {
      code,
      errno,
      syscall,
      path: strip(path),
      dest: strip(dest),
      message: strip(message),
    };
  }
}

/** Puts the same files into both places. */
async function arrange(root: string): Promise<void> {
  await host.rm(root, { recursive: true, force: true });
  await host.mkdir(join(root, 'full/inner'), { recursive: true });
  await host.mkdir(join(root, 'empty'));
  await host.writeFile(join(root, 'file'), 'contents');
  await host.writeFile(join(root, 'other'), 'other contents', { mode: 0o640 });
  await host.symlink('file', join(root, 'link'));
  await host.symlink('nowhere', join(root, 'dangling'));
  await host.symlink('circle', join(root, 'circle'));
}

const COPYFILE_EXCL = constants.COPYFILE_EXCL;

describe('as node:fs does,', () => {
  test.each<[string, (fs: Fs, root: string) => Promise<unknown>]>([
    ['rename moves', (fs, d) => fs.rename(`${d}/file`, `${d}/other`)],
    ['rename fails for a missing file', (fs, d) => fs.rename(`${d}/none`, `${d}/x`)],
    ['rename fails over a full directory', (fs, d) => fs.rename(`${d}/empty`, `${d}/full`)],
    ['rename fails into itself', (fs, d) => fs.rename(`${d}/full`, `${d}/full/inner/x`)],
    ['rename fails below a file', (fs, d) => fs.rename(`${d}/file`, `${d}/other/x`)],
    ['link links', (fs, d) => fs.link(`${d}/file`, `${d}/x`)],
    ['link fails for what is there', (fs, d) => fs.link(`${d}/file`, `${d}/other`)],
    ['link fails for a directory', (fs, d) => fs.link(`${d}/full`, `${d}/x`)],
    ['symlink links', (fs, d) => fs.symlink('../some where', `${d}/x`)],
    ['symlink fails for what is there', (fs, d) => fs.symlink('a', `${d}/file`)],
    ['readlink reads', (fs, d) => fs.readlink(`${d}/link`)],
    ['readlink fails for a file', (fs, d) => fs.readlink(`${d}/file`)],
    ['realpath resolves', (fs, d) => fs.realpath(`${d}/full/../link`)],
    ['realpath fails in a circle', (fs, d) => fs.realpath(`${d}/circle`)],
    ['realpath fails for a dangling link', (fs, d) => fs.realpath(`${d}/dangling`)],
    ['access finds a file', (fs, d) => fs.access(`${d}/file`)],
    ['access finds what may not be executed', (fs, d) => fs.access(`${d}/file`, constants.X_OK)],
    ['access misses a file', (fs, d) => fs.access(`${d}/none`, constants.R_OK)],
    ['chmod changes', (fs, d) => fs.chmod(`${d}/file`, 0o751)],
    ['chmod fails for a missing file', (fs, d) => fs.chmod(`${d}/none`, 0o751)],
    ['chown leaves with -1', (fs, d) => fs.chown(`${d}/file`, -1, -1)],
    ['chown fails for a dangling link', (fs, d) => fs.chown(`${d}/dangling`, 0, 0)],
    ['lchown takes a dangling link', (fs, d) => fs.lchown(`${d}/dangling`, -1, -1)],
    ['lchown fails for a missing file', (fs, d) => fs.lchown(`${d}/none`, 0, 0)],
    ['utimes takes seconds', (fs, d) => fs.utimes(`${d}/file`, 1.5, 1_700_000_000.25)],
    ['utimes takes dates', (fs, d) => fs.utimes(`${d}/link`, new Date(5000), new Date(1234))],
    ['utimes takes text', (fs, d) => fs.utimes(`${d}/file`, '12', '13.5')],
    ['utimes fails for a missing file', (fs, d) => fs.utimes(`${d}/none`, 1, 2)],
    ['lutimes takes a link', (fs, d) => fs.lutimes(`${d}/dangling`, 1, 2)],
    ['lutimes fails for a missing file', (fs, d) => fs.lutimes(`${d}/none`, 1, 2)],
    ['truncate cuts', (fs, d) => fs.truncate(`${d}/file`, 3)],
    ['truncate empties', (fs, d) => fs.truncate(`${d}/link`)],
    ['truncate extends', (fs, d) => fs.truncate(`${d}/file`, 100)],
    ['truncate fails for a missing file', (fs, d) => fs.truncate(`${d}/none`, 1)],
    ['truncate fails for a directory', (fs, d) => fs.truncate(`${d}/full`, 1)],
    ['copyFile copies', (fs, d) => fs.copyFile(`${d}/other`, `${d}/x`)],
    ['copyFile replaces, and sets the mode', (fs, d) => fs.copyFile(`${d}/other`, `${d}/file`)],
    ['copyFile follows links', (fs, d) => fs.copyFile(`${d}/other`, `${d}/link`)],
    ['copyFile makes what a link says', (fs, d) => fs.copyFile(`${d}/other`, `${d}/dangling`)],
    ['copyFile onto itself', (fs, d) => fs.copyFile(`${d}/file`, `${d}/link`)],
    ['copyFile fails for a missing file', (fs, d) => fs.copyFile(`${d}/none`, `${d}/x`)],
    ['copyFile fails for a directory to copy to', (fs, d) => fs.copyFile(`${d}/file`, `${d}/full`)],
    [
      'copyFile with COPYFILE_EXCL fails for what is there',
      (fs, d) => fs.copyFile(`${d}/file`, `${d}/other`, COPYFILE_EXCL),
    ],
    ['copyFile with COPYFILE_EXCL', (fs, d) => fs.copyFile(`${d}/file`, `${d}/x`, COPYFILE_EXCL)],
    ['appendFile appends', (fs, d) => fs.appendFile(`${d}/file`, ' and more')],
    [
      'appendFile creates',
      (fs, d) => fs.appendFile(`${d}/x`, 'ff', { encoding: 'hex', mode: 0o600 }),
    ],
    ['appendFile with ax fails', (fs, d) => fs.appendFile(`${d}/file`, '', { flag: 'ax' })],
    ['appendFile fails in a missing directory', (fs, d) => fs.appendFile(`${d}/no/file`, '')],
    ['mkdtemp fails in a missing directory', (fs, d) => fs.mkdtemp(`${d}/none/temp-`)],
    ['readdir lists a tree', async (fs, d) => (await fs.readdir(d, { recursive: true })).sort()],
    ['readdir fails for a missing tree', (fs, d) => fs.readdir(`${d}/none`, { recursive: true })],
    [
      'readdir lists a tree with types',
      async (fs, d) =>
        (await fs.readdir(d, { recursive: true, withFileTypes: true }))
          .map((e) => `${e.name} ${e.parentPath.replace(d, '')} ${e.isDirectory()} ${e.isFile()}`)
          .sort(),
    ],
  ])('%s', async (_, call) => {
    const ours = join(guest.directory, 'ours');
    const reference = join(theirs, 'ours');
    await arrange(ours);
    await arrange(reference);

    const result = await outcome(guest.fs as unknown as Fs, ours, call);

    expect(result).toEqual(await outcome(host, reference, call));
    expect(await describeTree(ours)).toEqual(await describeTree(reference));
  });
});

/** Everything about the files of a directory that calls can change. */
async function describeTree(root: string): Promise<unknown> {
  const names = (await host.readdir(root, { recursive: true })).sort();
  return Promise.all(
    names.map(async (name) => {
      const { mode, nlink, size, uid, gid, atimeMs, mtimeMs } = await host.lstat(join(root, name));
      const isOld = mtimeMs < 1_750_000_000_000;
      const isFile = (mode & constants.S_IFMT) === constants.S_IFREG;
      const contents = isFile ? await host.readFile(join(root, name), 'latin1') : undefined;
      // Whoever follows a link has accessed it.
      const times = isOld && (isFile ? [atimeMs, mtimeMs] : [mtimeMs]);
      return { name, mode, nlink, size, uid, gid, contents, times };
    }),
  );
}

describe('names that are not UTF-8', () => {
  const odd = Buffer.from([0x6f, 0xff, 0xfe]);

  test('go in as bytes, and come out as Buffers', async () => {
    const directory = Buffer.from(`${await host.realpath(guest.directory)}/`);
    const from = Buffer.concat([directory, odd]);
    const to = Buffer.concat([directory, Buffer.from('bytes-'), odd]);
    await guest.fs.writeFile(from, 'x');

    await guest.fs.symlink(odd, to);

    expect(await guest.fs.readlink(to, 'buffer')).toEqual(odd);
    expect(await guest.fs.readlink(to, { encoding: 'hex' })).toBe('6ffffe');
    expect(await guest.fs.realpath(to, { encoding: 'buffer' })).toEqual(from);
    await guest.fs.mkdir(guest.path('byte-tree/sub'), { recursive: true });
    const below = Buffer.concat([Buffer.from(guest.path('byte-tree/sub/')), odd]);
    await guest.fs.rename(from, below);
    const tree = { recursive: true, encoding: 'buffer' } as const;
    expect(await guest.fs.readdir(guest.path('byte-tree'), tree)).toContainEqual(
      Buffer.concat([Buffer.from('sub/'), odd]),
    );
    const typed = await guest.fs.readdir(guest.path('byte-tree'), { ...tree, withFileTypes: true });
    expect(typed.map(({ name }) => name)).toContainEqual(odd);
    const made = await guest.fs.mkdtemp(below, 'buffer');
    expect(made.subarray(0, -6)).toEqual(below);
  });

  test('are those of the moment of the call, whatever becomes of the bytes', async () => {
    const path = Buffer.from(guest.path('moment'));

    const written = guest.fs.writeFile(path, 'x');
    path.fill(0);
    await written;

    expect(await host.readFile(guest.path('moment'), 'utf8')).toBe('x');
  });
});

test('mkdtemp() makes directories of different names that only their owner may enter', async () => {
  const first = await guest.fs.mkdtemp(guest.path('temp-'));
  const second = await guest.fs.mkdtemp(guest.path('temp-'));

  expect(first).toMatch(/\/temp-[A-Za-z0-9]{6}$/);
  expect(second).not.toBe(first);
  expect((await host.stat(first)).mode & 0o777).toBe(0o700);
});

describe('an abort', () => {
  test.each<[string, (signal: AbortSignal) => Promise<unknown>]>([
    ['appendFile', (signal) => guest.fs.appendFile('/x', '', { signal })],
    ['copyFile', (signal) => guest.fs.copyFile('/x', '/y', 0, { signal })],
    ['readdir', (signal) => guest.fs.readdir('/', { signal })],
    ['stat', (signal) => guest.fs.stat('/', { signal })],
    ['access', (signal) => guest.fs.access('/', 0, { signal })],
    ['realpath', (signal) => guest.fs.realpath('/', { signal })],
    ['readlink', (signal) => guest.fs.readlink('/', { signal })],
    ['mkdir', (signal) => guest.fs.mkdir('/x', { signal })],
    ['mkdtemp', (signal) => guest.fs.mkdtemp('/x', { signal })],
    ['rm', (signal) => guest.fs.rm('/x', { signal })],
    ['rename', (signal) => guest.fs.rename('/x', '/y', { signal })],
    ['chmod', (signal) => guest.fs.chmod('/x', 0, { signal })],
    ['chown', (signal) => guest.fs.chown('/x', 0, 0, { signal })],
    ['lchown', (signal) => guest.fs.lchown('/x', 0, 0, { signal })],
    ['link', (signal) => guest.fs.link('/x', '/y', { signal })],
    ['symlink', (signal) => guest.fs.symlink('/x', '/y', { signal })],
    ['utimes', (signal) => guest.fs.utimes('/x', 0, 0, { signal })],
    ['lutimes', (signal) => guest.fs.lutimes('/x', 0, 0, { signal })],
    ['truncate', (signal) => guest.fs.truncate('/x', 0, { signal })],
  ])('before %s() sends nothing', async (_, call) => {
    const sends = guest.sends.length;

    await expect(call(AbortSignal.abort('why'))).rejects.toMatchObject({
      name: 'AbortError',
      code: 'ABORT_ERR',
      cause: 'why',
    });

    expect(guest.sends.length).toBe(sends);
  });

  test('of a long copy ends it, and nothing of it is left', async () => {
    await host.writeFile(guest.path('huge'), '');
    await host.truncate(guest.path('huge'), 2 ** 40);
    const controller = new AbortController();

    const copy = guest.fs.copyFile(guest.path('huge'), guest.path('huge-copy'), 0, {
      signal: controller.signal,
    });
    const failure = copy.catch((error: unknown) => error);
    while ((await guest.fs.readdir(guest.directory)).every((name) => name !== 'huge-copy'));
    controller.abort();

    expect(await failure).toMatchObject({ name: 'AbortError' });
    await expect(guest.fs.stat(guest.path('huge-copy'))).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

describe('writeFile() with atomic', () => {
  test('replaces a file when it is complete', async () => {
    const path = guest.path('atomic');
    await host.writeFile(path, 'old', { mode: 0o640 });
    let seen = '';

    await guest.fs.writeFile(
      path,
      (async function* () {
        yield 'new ';
        seen = await guest.fs.readFile(path, 'utf8');
        yield 'contents';
      })(),
      { atomic: true },
    );

    expect(seen).toBe('old');
    expect(await host.readFile(path, 'utf8')).toBe('new contents');
    expect((await host.stat(path)).mode & 0o777).toBe(0o640);
  });

  test('leaves nothing after an abort, or when the source fails', async () => {
    await guest.fs.mkdir(guest.path('atomic-dir'));
    const path = guest.path('atomic-dir/file');
    const controller = new AbortController();
    const broken = new Error('source broke');
    const source = async function* (then: () => unknown) {
      yield 'x';
      await guest.fs.stat('/');
      await then();
    };

    const aborted = guest.fs.writeFile(
      path,
      source(() => {
        controller.abort();
        return new Promise(() => {});
      }),
      { atomic: true, signal: controller.signal },
    );
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
    const failed = guest.fs.writeFile(
      path,
      source(() => Promise.reject(broken)),
      { atomic: true },
    );
    await expect(failed).rejects.toBe(broken);

    expect(await host.readdir(guest.path('atomic-dir'))).toEqual([]);
  });

  test('with flag wx refuses what is there', async () => {
    const path = guest.path('atomic-new');

    await guest.fs.writeFile(path, 'first', { atomic: true, flag: 'wx' });

    await expect(
      guest.fs.writeFile(path, 'second', { atomic: true, flag: 'wx' }),
    ).rejects.toMatchObject({ code: 'EEXIST', syscall: 'open', path });
    expect(await host.readFile(path, 'utf8')).toBe('first');
  });
});

describe('arguments', () => {
  const fs = () => guest.fs;

  test.each<[string, () => Promise<unknown>, typeof TypeError | typeof RangeError, string]>([
    ['a second path', () => fs().rename('/x', 5 as never), TypeError, 'destination'],
    ['NUL in a second path', () => fs().link('/x', 'a\0'), TypeError, 'NUL'],
    ['a prefix', () => fs().mkdtemp(5 as never), TypeError, 'prefix'],
    ['a signal', () => fs().rename('/x', '/y', { signal: 5 } as never), TypeError, 'signal'],
    [
      'an unknown option',
      () => fs().rename('/x', '/y', { sginal: 5 } as never),
      TypeError,
      'sginal',
    ],
    ['access beyond X_OK', () => fs().access('/x', 8), RangeError, 'mode'],
    ['copyFile that must share blocks', () => fs().copyFile('/x', '/y', 4), RangeError, 'mode'],
    ['chmod beyond its bits', () => fs().chmod('/x', 0o10000), RangeError, 'mode'],
    ['chmod without a mode', () => fs().chmod('/x', undefined as never), TypeError, 'mode'],
    ['a user below -1', () => fs().chown('/x', -2, 0), RangeError, 'uid'],
    ['a group beyond 32 bits', () => fs().chown('/x', 0, 2 ** 32 - 1), RangeError, 'gid'],
    ['a time that is none', () => fs().utimes('/x', 'now', 0), TypeError, 'atime'],
    ['a time without end', () => fs().utimes('/x', 0, Infinity), RangeError, 'mtime'],
    ['an invalid date', () => fs().utimes('/x', new Date(NaN), 0), RangeError, 'atime'],
    ['a time in the far future', () => fs().utimes('/x', 0, 1e11), RangeError, 'mtime'],
    ['a negative length', () => fs().truncate('/x', -1), RangeError, 'len'],
    ['a wrong encoding', () => fs().readlink('/x', 'utf9' as never), TypeError, 'encoding'],
    [
      'atomic appending',
      () => fs().writeFile('/x', '', { flag: 'a', atomic: true }),
      TypeError,
      'atomic',
    ],
    [
      'a flag that does not append',
      () => fs().appendFile('/x', '', { flag: 'w' as never }),
      TypeError,
      'flag',
    ],
  ])('refuse %s and name it', async (_, call, type, name) => {
    const error = await call().then(
      () => undefined,
      (reason: unknown) => reason as Error,
    );

    expect(error).toBeInstanceOf(type);
    expect(error?.message).toContain(name);
  });
});
