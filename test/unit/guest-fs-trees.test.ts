import { execFileSync } from 'node:child_process';
import diagnostics_channel from 'node:diagnostics_channel';
import * as fs from 'node:fs';
import path from 'node:path';

import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';

import type { DiagnosticsMessage } from '../../lib/internal/base/diagnostics.js';
import { AgentGuest } from '../helpers/agent-guest.js';
import { carried, describeTree, makeTree } from '../helpers/trees.js';

// The guest's files are files of this machine here, so that both ends can be looked at.

let guest: AgentGuest;
let count = 0;
/** A directory for each test. */
let at: (name: string) => string;

beforeAll(async () => {
  guest = await AgentGuest.start();
});

beforeEach(() => {
  const directory = guest.path(String(count++));
  fs.mkdirSync(directory);
  at = (name) => `${directory}/${name}`;
});

afterAll(async () => {
  await guest.stop();
});

function openDescriptors(): number {
  return fs.readdirSync('/proc/self/fd').length;
}

const ways = [
  ['upload', (from: string, to: string) => guest.fs.upload(from, to)],
  ['download', (from: string, to: string) => guest.fs.download(from, to)],
] as const;

describe.each(ways)('%s()', (method, transfer) => {
  test('carries everything that a tree has', async () => {
    makeTree(at('from'));
    const before = openDescriptors();

    const summary = await transfer(at('from'), at('to'));

    const expected = carried(describeTree(at('from')));
    expect(describeTree(at('to'))).toEqual(expected);
    const kinds = (kind: string) => expected.filter((item) => item.kind === kind);
    expect(summary).toEqual({
      files: kinds('file').filter(({ sameAs }) => sameAs === undefined).length,
      directories: kinds('directory').length,
      symlinks: kinds('symlink').length,
      links: 2,
      bytes:
        Number(
          execFileSync('du', ['-sb', '--apparent-size', at('from')], { encoding: 'utf8' }).split(
            '\t',
          )[0],
        ) - directoryBytes(at('from')),
      skipped: 0,
    });
    expect(openDescriptors()).toBe(before);
  });

  test('carries times of access, also before 1970', async () => {
    fs.writeFileSync(at('file'), 'x');
    fs.utimesSync(at('file'), '-1000.5', '-2000.25');

    await transfer(at('file'), at('copy'));

    const { atimeMs, mtimeMs } = fs.statSync(at('copy'));
    expect([atimeMs, mtimeMs]).toEqual([-1_000_500, -2_000_250]);
  });

  test('takes a single file, and a link to one, as the file', async () => {
    fs.writeFileSync(at('file'), 'contents', { mode: 0o640 });
    fs.symlinkSync('file', at('link'));

    const summary = await transfer(at('file'), at('a'));
    await transfer(at('link'), at('b'));

    expect(summary).toMatchObject({ files: 1, directories: 0, bytes: 8 });
    expect(describeTree(at('a'))).toEqual(describeTree(at('file')));
    expect(describeTree(at('b'))).toEqual(describeTree(at('file')));
  });

  test('merges into a directory, whose mode it keeps', async () => {
    fs.mkdirSync(at('from/both'), { recursive: true });
    fs.writeFileSync(at('from/both/new'), 'new');
    fs.writeFileSync(at('from/both/file'), 'after');
    fs.mkdirSync(at('to/both'), { recursive: true });
    fs.chmodSync(at('to/both'), 0o711);
    fs.writeFileSync(at('to/both/file'), 'before');
    fs.writeFileSync(at('to/both/old'), 'old');
    fs.linkSync(at('to/both/file'), at('other-name'));

    await transfer(at('from'), at('to'));

    expect(fs.readdirSync(at('to/both')).sort()).toEqual(['file', 'new', 'old']);
    expect(fs.readFileSync(at('to/both/file'), 'utf8')).toBe('after');
    // Replaced, not written into.
    expect(fs.readFileSync(at('other-name'), 'utf8')).toBe('before');
    expect(fs.statSync(at('to/both')).mode & 0o7777).toBe(0o711);
  });

  test('can be repeated', async () => {
    makeTree(at('from'));
    await transfer(at('from'), at('to'));
    const once = describeTree(at('to')).filter(({ kind }) => kind !== 'directory');

    await transfer(at('from'), at('to'));

    expect(describeTree(at('to')).filter(({ kind }) => kind !== 'directory')).toEqual(once);
  });

  test('puts no directory in the place of a file, nor the reverse', async () => {
    fs.mkdirSync(at('directory/inner'), { recursive: true });
    fs.mkdirSync(at('files'));
    fs.writeFileSync(at('files/inner'), 'x');

    const error = { syscall: method, path: at('files/inner') };
    const other = { path: at('directory/inner') };
    const to =
      method === 'upload' ? [error, { ...other, syscall: method }] : [{ path: error.path }, other];
    await expect(transfer(at('directory'), at('files'))).rejects.toMatchObject({
      code: 'ENOTDIR',
      ...to[0],
    });
    await expect(transfer(at('files'), at('directory'))).rejects.toMatchObject({
      code: 'EISDIR',
      ...to[1],
    });
    await expect(transfer(at('directory'), at('files/inner'))).rejects.toMatchObject({
      code: 'ENOTDIR',
    });
    await expect(transfer(at('files/inner'), at('directory'))).rejects.toMatchObject({
      code: 'EISDIR',
    });
    expect(fs.readFileSync(at('files/inner'), 'utf8')).toBe('x');
  });

  test('follows no link of the target, and replaces the ones that are in the way', async () => {
    fs.mkdirSync(at('outside'));
    fs.writeFileSync(at('outside/file'), 'untouched');
    fs.mkdirSync(at('from'));
    fs.writeFileSync(at('from/file'), 'contents');
    fs.mkdirSync(at('to'));
    fs.symlinkSync('../outside/file', at('to/file'));

    await transfer(at('from'), at('to'));

    expect(fs.lstatSync(at('to/file')).isFile()).toBe(true);
    expect(fs.readFileSync(at('outside/file'), 'utf8')).toBe('untouched');
    fs.symlinkSync('outside', at('link'));
    await expect(transfer(at('from'), at('link'))).rejects.toMatchObject({ code: 'ENOTDIR' });
    expect(fs.readdirSync(at('outside'))).toEqual(['file']);
  });

  test('needs a parent, and a source', async () => {
    fs.mkdirSync(at('from'));

    await expect(transfer(at('from'), at('no/where'))).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(transfer(at('nothing'), at('to'))).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(transfer('/dev/null', at('to'))).rejects.toMatchObject({ code: 'EINVAL' });
    expect(fs.existsSync(at('to'))).toBe(false);
  });

  test('has room for many files and long names', async () => {
    fs.mkdirSync(at('from'));
    for (let i = 0; i < 3000; i++) {
      fs.writeFileSync(at(`from/${String(i).padStart(200, 'n')}`), String(i));
    }
    let path = at('from');
    for (let i = 0; i < 15; i++) {
      path += `/${'d'.repeat(250)}`;
      fs.mkdirSync(path.length < 4000 ? path : '/', { recursive: true });
    }

    const { files } = await transfer(at('from'), at('to'));

    expect(files).toBe(3000);
    expect(describeTree(at('to'))).toEqual(describeTree(at('from')));
  });

  test('ends within its deadline', async () => {
    guest.signal('SIGSTOP');
    fs.mkdirSync(at('from'));
    const pending =
      method === 'upload'
        ? guest.fs.upload(at('from'), at('to'), { timeoutMs: 100 })
        : guest.fs.download(at('from'), at('to'), { timeoutMs: 100 });
    setTimeout(() => guest.signal('SIGCONT'), 300);

    await expect(pending).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT' });
  });

  test('is told with its paths and what came of it', async () => {
    const messages: DiagnosticsMessage[] = [];
    const listen = (message: unknown) => messages.push(message as DiagnosticsMessage);
    diagnostics_channel.subscribe('forklet:fs', listen);
    fs.writeFileSync(at('file'), 'contents');

    await transfer(at('file'), at('copy'));

    diagnostics_channel.unsubscribe('forklet:fs', listen);
    expect(messages).toMatchObject([
      {
        operation: method,
        arguments: { path: at('file'), destination: at('copy') },
        outcome: 'ok',
        result: { files: 1, bytes: 8 },
      },
    ]);
  });
});

describe('upload()', () => {
  test.each(['fifo', 'socket'])('refuses a %s, and names it', async (kind) => {
    fs.mkdirSync(at('from'));
    if (kind === 'fifo') execFileSync('mkfifo', [at('from/odd')]);
    else
      execFileSync('python3', ['-c', `import socket; socket.socket(1).bind('${at('from/odd')}')`]);

    await expect(guest.fs.upload(at('from'), at('to'))).rejects.toMatchObject({
      code: 'EINVAL',
      path: at('from/odd'),
      message: expect.stringContaining('neither a file nor a directory'),
    });
  });

  test('sends a file that shrinks meanwhile as it is then', async () => {
    fs.mkdirSync(at('from'));
    fs.writeFileSync(at('from/file'), Buffer.alloc(4_000_000, 'x'));
    guest.signal('SIGSTOP');
    const pending = guest.fs.upload(at('from'), at('to'));
    await new Promise((resolve) => setTimeout(resolve, 100));
    fs.truncateSync(at('from/file'), 2_500_000);
    guest.signal('SIGCONT');

    await pending;

    expect(fs.statSync(at('to/file')).size).toBe(2_500_000);
  });

  test('ends when it is aborted, and leaves no file in part', async () => {
    fs.mkdirSync(at('from'));
    fs.writeFileSync(at('from/file'), Buffer.alloc(300_000, 'x'));
    fs.truncateSync(at('from/file'), 2 ** 40);
    const before = openDescriptors();

    await expect(
      guest.fs.upload(at('from'), at('to'), { signal: AbortSignal.timeout(100) }),
    ).rejects.toMatchObject({ name: 'AbortError' });

    expect(fs.readdirSync(at('to'))).toEqual([]);
    expect(openDescriptors()).toBe(before);
  });
});

describe('download()', () => {
  test('leaves devices, FIFOs and sockets out and counts them', async () => {
    fs.mkdirSync(at('from'));
    execFileSync('mkfifo', [at('from/a'), at('from/b')]);
    fs.writeFileSync(at('from/c'), 'x');

    const summary = await guest.fs.download(at('from'), at('to'));

    expect(summary).toMatchObject({ files: 1, skipped: 2 });
    expect(fs.readdirSync(at('to'))).toEqual(['c']);
  });

  test('counts files in full before it writes them', async () => {
    fs.mkdirSync(at('from'));
    fs.writeFileSync(at('from/holes'), '');
    fs.truncateSync(at('from/holes'), 1001);

    await expect(guest.fs.download(at('from'), at('to'), { maxBytes: 1000 })).rejects.toMatchObject(
      { code: 'ERR_VM_MAX_TRANSFER' },
    );
    expect(fs.readdirSync(at('to'))).toEqual([]);
    await guest.fs.download(at('from'), at('to'), { maxBytes: 1001 });
    await expect(guest.fs.download(at('from'), at('to'), { maxEntries: 1 })).rejects.toMatchObject({
      code: 'ERR_VM_MAX_TRANSFER',
    });
    await guest.fs.download(at('from'), at('to'), { maxEntries: 2 });
  });

  test('refuses by default what fills the disk', async () => {
    fs.writeFileSync(at('from'), '');
    fs.truncateSync(at('from'), 2 ** 32 + 1);

    await expect(guest.fs.download(at('from'), at('to'))).rejects.toMatchObject({
      code: 'ERR_VM_MAX_TRANSFER',
    });
  });

  test('ends when it is aborted, and leaves no file in part', async () => {
    fs.mkdirSync(at('from'));
    fs.writeFileSync(at('from/file'), Buffer.alloc(30_000_000));
    const controller = new AbortController();
    const before = openDescriptors();
    const pending = guest.fs.download(at('from'), at('to'), { signal: controller.signal });
    while (!fs.existsSync(at('to/file'))) await new Promise((resolve) => setImmediate(resolve));
    controller.abort(new Error('enough'));

    await expect(pending).rejects.toMatchObject({
      name: 'AbortError',
      cause: new Error('enough'),
    });
    expect(fs.readdirSync(at('to'))).toEqual([]);
    expect(openDescriptors()).toBe(before);
  });

  test('is over when the guest dies', async () => {
    const doomed = await AgentGuest.start({ exitGraceMs: 10 });
    fs.mkdirSync(at('from'));
    fs.writeFileSync(at('from/file'), Buffer.alloc(30_000_000));
    const before = openDescriptors();
    const pending = doomed.fs.download(at('from'), at('to'));
    while (!fs.existsSync(at('to/file'))) await new Promise((resolve) => setImmediate(resolve));
    await doomed.stop();

    await expect(pending).rejects.toMatchObject({ code: 'ERR_VM_AGENT_PROTOCOL' });
    expect(fs.readdirSync(at('to'))).toEqual([]);
    // The connection to that guest was counted as well.
    expect(openDescriptors()).toBeLessThan(before);
  });
});

describe('both', () => {
  test('check what they are given', async () => {
    const any = guest.fs as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;

    await expect(any['upload']?.('/a', '/b', { timeoutMs: 0 })).rejects.toThrow(RangeError);
    await expect(any['upload']?.('/a', '/b', { maxBytes: 1 })).rejects.toThrow(/maxBytes/);
    await expect(any['upload']?.(7, '/b')).rejects.toThrow(/hostPath/);
    await expect(any['download']?.('/a', '/b\0')).rejects.toThrow(/hostPath/);
    await expect(any['download']?.(null, '/b')).rejects.toThrow(/guestPath/);
    await expect(any['download']?.('/a', '/b', { maxEntries: 0 })).rejects.toThrow(RangeError);
    await expect(any['download']?.('/a', '/b', { maxBytes: -1 })).rejects.toThrow(RangeError);
  });

  test('take paths of any bytes, and relative ones', async () => {
    const odd = Buffer.concat([Buffer.from(at('')), Buffer.from([0xff, 0x0a])]);
    fs.writeFileSync(odd, 'odd');
    const relative = path.relative(process.cwd(), at('relative'));

    await guest.fs.upload(odd, at('a'));
    await guest.fs.download(odd, relative);

    expect(fs.readFileSync(at('a'), 'utf8')).toBe('odd');
    expect(fs.readFileSync(at('relative'), 'utf8')).toBe('odd');
    await expect(guest.fs.download(odd, '')).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

/** What directories and symbolic links have in the count of `du`. */
function directoryBytes(top: string): number {
  const find = ['find', top, '(', '-type', 'd', '-o', '-type', 'l', ')', '-printf', '%s\n'];
  const sizes = execFileSync('env', find, { encoding: 'utf8' }).trim().split('\n');
  return sizes.reduce((sum, size) => sum + Number(size), 0);
}
