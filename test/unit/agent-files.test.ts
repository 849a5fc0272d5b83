import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  rmSync,
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
  encodeData,
  encodeMkdir,
  encodeReadFile,
  encodeRemove,
  encodeStat,
  encodeWindow,
  encodeWriteFile,
  FILE_WINDOW_BYTES,
  Stream,
} from '../../lib/internal/protocol/protocol.js';
import type { HostAgent } from '../helpers/host-agent.js';
import { sharedAgent } from '../helpers/shared-agent.js';

const { ENOENT, EISDIR, ENOTDIR, EEXIST, ECANCELED, EPROTO, EBUSY, ENOTEMPTY } = constants.errno;

let agent: HostAgent;
let directory: string;

sharedAgent((...made) => {
  [agent, directory] = made;
});

function path(name: string): string {
  return join(directory, name);
}

/** Bytes with every value in them. */
function pattern(size: number): Buffer {
  return Buffer.from(Array.from({ length: size }, (_, i) => (i ^ (i >> 8)) & 0xff));
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

describe('reading', () => {
  test.each([0, 1, 65535, 65536, 65537, 1_000_000])('returns all %i bytes', async (size) => {
    const bytes = pattern(size);
    writeFileSync(path('read'), bytes);

    const result = await agent.readFile(path('read'));

    expect(result.errno).toBe(0);
    expect(result.stdout.equals(bytes)).toBe(true);
  });

  test('returns 32 MiB unharmed', async () => {
    const bytes = Buffer.alloc(32 * 2 ** 20, pattern(65537));
    writeFileSync(path('large'), bytes);

    const result = await agent.readFile(path('large'));

    expect(sha256(result.stdout)).toBe(sha256(bytes));
  });

  test('returns files of /proc, whose size is 0', async () => {
    const result = await agent.readFile('/proc/cpuinfo');

    expect(result.stdout.toString()).toBe(readFileSync('/proc/cpuinfo', 'utf8'));
  });

  test('returns a range, also beyond 4 GiB', async () => {
    writeFileSync(path('sparse'), '');
    truncateSync(path('sparse'), 5 * 2 ** 30);
    writeFileSync(path('sparse'), 'the end', { flag: 'a' });

    const whole = await agent.readFile(path('sparse'), { start: 5 * 2 ** 30 - 2 });
    const part = await agent.readFile(path('sparse'), { start: 5 * 2 ** 30 + 4, byteCount: 2 });
    const none = await agent.readFile(path('sparse'), { start: 6 * 2 ** 30, byteCount: 2 });

    expect(whole.stdout.toString()).toBe('\0\0the end');
    expect(part.stdout.toString()).toBe('en');
    expect(none.stdout).toHaveLength(0);
  });

  test('of endless devices ends where the range does', async () => {
    expect((await agent.readFile('/dev/zero', { byteCount: 100_000 })).stdout).toHaveLength(
      100_000,
    );
  });

  test('stops at its window, and goes on when it opens', async () => {
    writeFileSync(path('windowed'), pattern(5000));
    const limits = { outputLimit: 1000 };
    const operation = agent.start((id) => encodeReadFile(id, path('windowed'), limits));
    await operation.until((o) => o.received(Stream.output).length === 1000);

    agent.send(encodeWindow(operation.id, Stream.output, 5000));

    // The whole file, and so its end: no larger window is needed to learn of that.
    expect((await operation.done).stdout.equals(pattern(5000))).toBe(true);
  });

  test('of a FIFO without data waits, and others go on meanwhile', async () => {
    execFileSync('mkfifo', [path('fifo')]);
    const held = agent.spawn(['sh', '-c', `exec 3<>${path('fifo')}; echo open; sleep 60`]);
    await held.until((o) => o.received(Stream.output).length > 0);
    const limits = { outputLimit: 1000 };
    const operation = agent.start((id) => encodeReadFile(id, path('fifo'), limits));

    const other = await agent.readFile('/proc/self/comm');
    expect(other.errno).toBe(0);
    writeFileSync(path('fifo'), 'late');
    await operation.until((o) => o.received(Stream.output).toString() === 'late');

    agent.send(encodeCancel(operation.id), encodeCancel(held.id));
    expect(await operation.done).toMatchObject({ errno: ECANCELED });
    await held.done;
  });

  test('of a FIFO without a writer ends at once', async () => {
    execFileSync('mkfifo', [path('lonely')]);

    expect(await agent.readFile(path('lonely'))).toMatchObject({ errno: 0 });
  });

  test('fails for a missing file, a directory, and below a file', async () => {
    expect(await agent.readFile(path('none'))).toMatchObject({ errno: ENOENT });
    expect(await agent.readFile(directory)).toMatchObject({ errno: EISDIR });
    expect(await agent.readFile('/etc/passwd/x')).toMatchObject({ errno: ENOTDIR });
    expect(await agent.readFile('')).toMatchObject({ errno: ENOENT });
  });

  test('takes names that are not UTF-8', async () => {
    const name = Buffer.concat([Buffer.from(`${directory}/`), Buffer.from([0xff, 0xfe])]);
    writeFileSync(name, 'odd');
    const limits = { outputLimit: 100 };

    const result = await agent.start((id) => encodeReadFile(id, name, limits)).done;

    expect(result.stdout.toString()).toBe('odd');
    rmSync(name);
  });
});

describe('writing', () => {
  test.each([0, 1, 65536, 3_000_000])('stores all %i bytes', async (size) => {
    const bytes = pattern(size);

    const result = await agent.writeFile(path('written'), bytes);

    expect(result.errno).toBe(0);
    expect(readFileSync(path('written')).equals(bytes)).toBe(true);
  });

  test('replaces what was there, keeps the mode, and follows links', async () => {
    writeFileSync(path('old'), 'a longer text', { mode: 0o600 });
    symlinkSync(path('old'), path('old-link'));

    await agent.writeFile(path('old-link'), Buffer.from('short'), { mode: 0o644 });

    expect(readFileSync(path('old'), 'utf8')).toBe('short');
    expect(statSync(path('old')).mode & 0o777).toBe(0o600);
  });

  test('makes new files with the given mode', async () => {
    await agent.writeFile(path('tool'), Buffer.from('x'), { mode: 0o750 });
    await agent.writeFile(path('default'), Buffer.from('x'));

    expect(statSync(path('tool')).mode & 0o777).toBe(0o750);
    expect(statSync(path('default')).mode & 0o777).toBe(0o644);
  });

  test('appends', async () => {
    writeFileSync(path('log'), 'one ');

    await agent.writeFile(path('log'), Buffer.from('two'), { append: true });

    expect(readFileSync(path('log'), 'utf8')).toBe('one two');
  });

  test('refuses to replace when it must not', async () => {
    writeFileSync(path('kept'), 'kept');

    const result = await agent.writeFile(path('kept'), Buffer.from('new'), { exclusive: true });

    expect(result.errno).toBe(EEXIST);
    expect(readFileSync(path('kept'), 'utf8')).toBe('kept');
  });

  test('stores bytes as they come', async () => {
    const operation = agent.start((id) => encodeWriteFile(id, path('slow')), FILE_WINDOW_BYTES);
    agent.send(encodeData(operation.id, 0, Buffer.from('first')));
    await agent.readFile('/proc/self/comm');

    expect(readFileSync(path('slow'), 'utf8')).toBe('first');
    agent.send(encodeCancel(operation.id));
    expect(await operation.done).toMatchObject({ errno: ECANCELED });
  });

  test('fails in the middle when the device is full', async () => {
    const result = await agent.writeFile('/dev/full', pattern(200_000));

    expect(result.errno).toBe(constants.errno.ENOSPC);
  });

  test('to a FIFO waits for its reader', async () => {
    execFileSync('mkfifo', [path('sink')]);
    const bytes = pattern(1_000_000);
    const slow = agent.spawn([
      'sh',
      '-c',
      `exec 3<>${path('sink')}; echo; sleep 0.2; head -c 1000000 <&3 | sha256sum`,
    ]);
    await slow.until((o) => o.received(Stream.output).length > 0);

    expect(await agent.writeFile(path('sink'), bytes)).toMatchObject({ errno: 0 });

    expect((await slow.done).stdout.toString()).toContain(sha256(bytes));
  });

  test('fails for a directory, and in a missing one', async () => {
    expect(await agent.writeFile(directory, Buffer.from('x'))).toMatchObject({ errno: EISDIR });
    expect(await agent.writeFile(path('no/file'), Buffer.from('x'))).toMatchObject({
      errno: ENOENT,
    });
  });
});

describe('stat', () => {
  const stat = (name: string, followLinks = true) =>
    agent.start((id) => encodeStat(id, name, { followLinks })).done;

  test('has the fields of the host', async () => {
    writeFileSync(path('stat'), pattern(12345));
    chmodSync(path('stat'), 0o4751);

    const { stat: record } = await stat(path('stat'));

    const expected = statSync(path('stat'), { bigint: true });
    expect(record).toEqual({
      dev: expected.dev,
      ino: expected.ino,
      nlink: expected.nlink,
      rdev: expected.rdev,
      size: expected.size,
      blocks: expected.blocks,
      atimeNs: expected.atimeNs,
      mtimeNs: expected.mtimeNs,
      ctimeNs: expected.ctimeNs,
      birthtimeNs: expected.birthtimeNs,
      mode: Number(expected.mode),
      uid: Number(expected.uid),
      gid: Number(expected.gid),
      blksize: Number(expected.blksize),
    });
  });

  test('has the device number of a device', async () => {
    const { stat: record } = await stat('/dev/null');

    expect(record?.rdev).toBe(statSync('/dev/null', { bigint: true }).rdev);
  });

  test('follows a link, or not', async () => {
    symlinkSync('/nowhere/at/all', path('dangling'));

    expect(await stat(path('dangling'))).toMatchObject({ errno: ENOENT, stat: null });
    expect((await stat(path('dangling'), false)).stat?.size).toBe(BigInt('/nowhere/at/all'.length));
  });
});

describe('mkdir', () => {
  const mkdir = (name: string, options: { mode?: number; recursive?: boolean } = {}) =>
    agent.start((id) => encodeMkdir(id, name, options)).done;

  test('makes a directory with the given mode', async () => {
    expect(await mkdir(path('made'), { mode: 0o700 })).toMatchObject({ errno: 0 });

    expect(statSync(path('made')).mode & 0o777).toBe(0o700);
  });

  test('fails when it exists, or its parent does not', async () => {
    expect(await mkdir(directory)).toMatchObject({ errno: EEXIST });
    expect(await mkdir(path('no/parent'))).toMatchObject({ errno: ENOENT });
  });

  test('makes parents, and is content with what exists, when recursive', async () => {
    expect(await mkdir(path('a/b//c/./d/'), { recursive: true })).toMatchObject({ errno: 0 });
    expect(await mkdir(path('a/b/c/d'), { recursive: true })).toMatchObject({ errno: 0 });

    expect(statSync(path('a/b/c/d')).isDirectory()).toBe(true);
  });

  test('fails for a file in the way, when recursive', async () => {
    writeFileSync(path('in-the-way'), '');

    expect(await mkdir(path('in-the-way'), { recursive: true })).toMatchObject({ errno: EEXIST });
    expect(await mkdir(path('in-the-way/x'), { recursive: true })).toMatchObject({
      errno: ENOTDIR,
    });
    expect(await mkdir(path('in-the-way/x/y'), { recursive: true })).toMatchObject({
      errno: ENOTDIR,
    });
  });
});

describe('rm', () => {
  const rm = (name: string, options: { recursive?: boolean; force?: boolean } = {}) =>
    agent.start((id) => encodeRemove(id, name, options)).done;

  test('removes a file, and a link but not its target', async () => {
    writeFileSync(path('target'), 'kept');
    symlinkSync(path('target'), path('link'));

    expect(await rm(path('link'))).toMatchObject({ errno: 0 });
    expect(existsSync(path('link'))).toBe(false);
    expect(await rm(path('target'))).toMatchObject({ errno: 0 });
    expect(existsSync(path('target'))).toBe(false);
  });

  test('refuses a directory unless recursive', async () => {
    mkdirSync(path('stays'));

    expect(await rm(path('stays'))).toMatchObject({ errno: EISDIR });
    expect(await rm(path('stays'), { force: true })).toMatchObject({ errno: EISDIR });
  });

  test('fails for a missing path unless forced', async () => {
    expect(await rm(path('none'))).toMatchObject({ errno: ENOENT });
    expect(await rm(path('none'), { recursive: true })).toMatchObject({ errno: ENOENT });
    expect(await rm(path('none'), { force: true })).toMatchObject({ errno: 0 });
    expect(await rm(path('none'), { recursive: true, force: true })).toMatchObject({ errno: 0 });
  });

  test('removes a tree of thousands of entries, and follows no link out of it', async () => {
    mkdirSync(path('outside'));
    writeFileSync(path('outside/precious'), '');
    for (let i = 0; i < 20; i++) {
      mkdirSync(path(`tree/${i}/deeper/still`), { recursive: true });
      for (let j = 0; j < 100; j++) writeFileSync(path(`tree/${i}/deeper/${j}`), '');
      symlinkSync(path('outside'), path(`tree/${i}/link`));
    }

    expect(await rm(path('tree'), { recursive: true })).toMatchObject({ errno: 0 });

    expect(existsSync(path('tree'))).toBe(false);
    expect(existsSync(path('outside/precious'))).toBe(true);
  });

  test('removes a tree that is deeper than a path is long', async () => {
    const script =
      'mkdir deep && cd deep && for i in $(seq 600); do mkdir 0123456789 && cd -P 0123456789 || exit 1; done';
    expect(await agent.sh(script, { cwd: directory })).toMatchObject({ exitCode: 0 });

    expect(await rm(path('deep'), { recursive: true })).toMatchObject({ errno: 0 });

    expect(existsSync(path('deep'))).toBe(false);
  });

  test('lets other operations go on, and can be cancelled', async () => {
    mkdirSync(path('wide'));
    for (let i = 0; i < 5000; i++) writeFileSync(path(`wide/${i}`), '');

    const removal = agent.start((id) => encodeRemove(id, path('wide'), { recursive: true }));
    agent.send(encodeCancel(removal.id));

    expect(await removal.done).toMatchObject({ errno: ECANCELED });
    expect(lstatSync(path('wide')).isDirectory()).toBe(true);
    expect(await rm(path('wide'), { recursive: true })).toMatchObject({ errno: 0 });
  });

  test('keeps the contents of a mount point, which cannot be removed', async () => {
    // Also what protects against removing the root.
    const result = await rm('/proc', { recursive: true });

    expect([EBUSY, ENOTEMPTY]).toContain(result.errno);
  });
});

describe('a request that makes no sense', () => {
  test('with a flag that its kind does not have is refused', async () => {
    const frame = (id: number) => {
      const bytes = Buffer.from(encodeStat(id, '/'));
      // The flags are the last record: 4 bytes.
      bytes.writeUInt32LE(0x80, bytes.length - 4);
      return bytes;
    };

    expect(await agent.start(frame).done).toMatchObject({ errno: EPROTO });
  });
});
