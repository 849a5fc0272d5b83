import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import { CpioScanner, CpioWriter, FileKind } from '../../lib/internal/boot/cpio.js';
import { maxRootBytes, type PackOptions, packRoot } from '../../lib/internal/boot/pack-root.js';
import { MiB } from '../../lib/units.js';

const AGENT = Buffer.from('the agent');

let directory: string;
let root: string;
let unpacked: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'forklet-pack-'));
  root = join(directory, 'root');
  unpacked = join(directory, 'unpacked');
  mkdirSync(root);
  mkdirSync(unpacked);
});

afterEach(() => rmSync(directory, { recursive: true, force: true }));

function pack(path: string, options: Partial<PackOptions> = {}) {
  return packRoot({ root: path, agent: AGENT, maxBytes: 64 * MiB, ...options });
}

/** Splits concatenated archives, since cpio reads one. */
function archives(bytes: Buffer): Buffer[] {
  const found: Buffer[] = [];
  let rest = bytes;
  for (;;) {
    const trailer = rest.indexOf('TRAILER!!!');
    if (trailer < 0) return found;
    found.push(Buffer.concat([rest.subarray(0, trailer + 12), Buffer.alloc(512)]));
    const next = rest.indexOf('070701', trailer);
    if (next < 0) return found;
    rest = rest.subarray(next);
  }
}

/** Unpacks as the kernel does: what comes later wins. Devices need root. */
function unpack(segments: Uint8Array[]): void {
  for (const archive of archives(Buffer.concat(segments))) {
    execFileSync('cpio', ['-id', '--quiet', '--unconditional', '--nonmatching', 'dev/console'], {
      input: archive,
      cwd: unpacked,
      stdio: 'pipe',
    });
  }
}

describe('packRoot() of a directory', () => {
  test('keeps files, modes, links and names', async () => {
    mkdirSync(join(root, 'etc/deep/er'), { recursive: true });
    writeFileSync(join(root, 'etc/empty'), '');
    writeFileSync(join(root, 'etc/deep/er/text'), 'text');
    writeFileSync(join(root, 'tool'), '#!/bin/sh\n');
    chmodSync(join(root, 'tool'), 0o4755);
    symlinkSync('/absolute/target', join(root, 'link'));
    const odd = Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0x20, 0x0a])]);
    writeFileSync(odd, 'odd');

    unpack(await pack(root));

    expect(readdirSync(join(unpacked, 'etc')).sort()).toEqual(['deep', 'empty']);
    expect(readFileSync(join(unpacked, 'etc/deep/er/text'), 'utf8')).toBe('text');
    expect(statSync(join(unpacked, 'tool')).mode & 0o7777).toBe(0o4755);
    expect(readlinkSync(join(unpacked, 'link'))).toBe('/absolute/target');
    const oddName = Buffer.concat([Buffer.from(`${unpacked}/`), Buffer.from([0xff, 0x20, 0x0a])]);
    expect(readFileSync(oddName, 'utf8')).toBe('odd');
  });

  test('keeps hard links together', async () => {
    writeFileSync(join(root, 'one'), 'shared');
    linkSync(join(root, 'one'), join(root, 'two'));
    linkSync(join(root, 'one'), join(root, 'zero'));

    const segments = await pack(root);
    unpack(segments);

    const inodes = ['one', 'two', 'zero'].map((name) => statSync(join(unpacked, name)).ino);
    expect(new Set(inodes).size).toBe(1);
    expect(readFileSync(join(unpacked, 'two'), 'utf8')).toBe('shared');
    expect(Buffer.concat(segments).toString('latin1').split('shared')).toHaveLength(2);
  });

  test('follows no link out of it', async () => {
    mkdirSync(join(directory, 'outside'));
    writeFileSync(join(directory, 'outside/secret'), 'secret');
    symlinkSync(join(directory, 'outside'), join(root, 'out'));
    symlinkSync(join(directory, 'outside/secret'), join(root, 'file'));

    const segments = await pack(root);

    expect(Buffer.concat(segments).includes('secret\0')).toBe(true);
    unpack(segments);
    expect(lstatSync(join(unpacked, 'out')).isSymbolicLink()).toBe(true);
    expect(lstatSync(join(unpacked, 'file')).isSymbolicLink()).toBe(true);
  });

  test('keeps FIFOs and leaves sockets out', async () => {
    execFileSync('mkfifo', [join(root, 'fifo')]);
    const server = createServer().listen(join(root, 'socket'));
    await new Promise((resolve) => server.once('listening', resolve));

    unpack(await pack(root));

    server.close();
    expect(lstatSync(join(unpacked, 'fifo')).isFIFO()).toBe(true);
    expect(existsSync(join(unpacked, 'socket'))).toBe(false);
  });

  test('makes files of the calling user root’s', async () => {
    writeFileSync(join(root, 'file'), '');

    const [first] = await pack(root);

    const header = Buffer.from(first ?? []).toString('latin1');
    const at = header.indexOf('file\0') - 110;
    expect(header.substring(at + 22, at + 38)).toBe('0000000000000000');
  });

  test('makes the same archive twice', async () => {
    for (const name of ['b', 'a', 'c']) writeFileSync(join(root, name), name);

    expect(Buffer.concat(await pack(root))).toEqual(Buffer.concat(await pack(root)));
  });

  test('has mount points, which the root may give other modes', async () => {
    mkdirSync(join(root, 'tmp'));
    chmodSync(join(root, 'tmp'), 0o700);

    unpack(await pack(root));

    for (const name of ['dev', 'proc', 'sys', 'run']) {
      expect(statSync(join(unpacked, name)).isDirectory()).toBe(true);
    }
    expect(statSync(join(unpacked, 'tmp')).mode & 0o7777).toBe(0o700);
  });

  test('has our agent, whatever the root has in its place', async () => {
    mkdirSync(join(root, '.forklet'));
    writeFileSync(join(root, '.forklet/agent'), 'another');

    unpack(await pack(root));

    expect(readFileSync(join(unpacked, '.forklet/agent'), 'utf8')).toBe('the agent');
    expect(statSync(join(unpacked, '.forklet/agent')).mode & 0o777).toBe(0o755);
  });

  test('has the modules that were given, and a list that keeps their order', async () => {
    const module = (fileName: string) => ({ fileName, data: Buffer.from(`code of ${fileName}`) });

    unpack(await pack(root, { modules: [module('b.ko'), module('a.ko')] }));

    const packed = join(unpacked, '.forklet/modules');
    expect(readFileSync(join(packed, 'order'), 'utf8')).toBe('b.ko\na.ko\n');
    expect(readFileSync(join(packed, 'a.ko'), 'utf8')).toBe('code of a.ko');
    expect(readFileSync(join(packed, 'b.ko'), 'utf8')).toBe('code of b.ko');
    expect(existsSync(join(unpacked, '.forklet/agent'))).toBe(true);
  });

  test('reads large files in pieces, each segment a multiple of 4 bytes', async () => {
    const bytes = Buffer.alloc(5 * MiB + 3, 'x');
    writeFileSync(join(root, 'large'), bytes);

    const segments = await pack(root);

    expect(segments.length).toBeGreaterThan(4);
    expect(segments.filter(({ byteLength }) => byteLength % 4 !== 0)).toEqual([]);
    unpack(segments);
    expect(readFileSync(join(unpacked, 'large')).equals(bytes)).toBe(true);
  });

  test('names the file that cannot be read', async () => {
    await expect(pack(join(root, 'missing'))).rejects.toMatchObject({
      code: 'ERR_VM_BAD_ROOT',
      errno: -2,
      message: expect.stringContaining(join(root, 'missing')),
    });
  });

  test('stops before it reads what does not fit', async () => {
    writeFileSync(join(root, 'large'), Buffer.alloc(3 * MiB));

    await expect(pack(root, { maxBytes: 2 * MiB })).rejects.toMatchObject({
      code: 'ERR_VM_NO_MEMORY',
      message: expect.stringContaining('more than the 2 MiB'),
    });
  });

  test('starts the contents of large files at page boundaries, in a directory and an archive', async () => {
    const contents = Buffer.alloc(5000, 'unmistakable');
    writeFileSync(join(root, 'large'), contents);
    const writer = new CpioWriter();
    const file = { path: 'large', mode: FileKind.regular | 0o600, data: contents };
    const path = join(directory, 'root.cpio');
    writeFileSync(path, Buffer.concat([writer.entry(file, 0), writer.trailer()]));

    for (const source of [root, path]) {
      const bytes = Buffer.concat(await pack(source));
      expect(bytes.indexOf(contents)).toBeGreaterThan(0);
      expect(bytes.indexOf(contents) % 4096).toBe(0);
    }
  });

  test('can be aborted', async () => {
    for (let i = 0; i < 100; i++) writeFileSync(join(root, `${i}`), '');
    const controller = new AbortController();

    const packed = pack(root, { signal: controller.signal });
    controller.abort();

    await expect(packed).rejects.toMatchObject({ name: 'AbortError' });
  });
});

describe('packRoot() of an archive', () => {
  function writeArchive(): string {
    const writer = new CpioWriter();
    const path = join(directory, 'root.cpio');
    const file = { path: 'hello', mode: FileKind.regular | 0o600, data: Buffer.from('hello') };
    const agent = { path: '.forklet', mode: FileKind.symlink | 0o777, data: Buffer.from('/tmp') };
    const pieces = [writer.entry(file, 0), writer.entry(agent, 0), writer.trailer()];
    // Not a multiple of 4: somebody cut the padding off.
    writeFileSync(path, Buffer.concat(pieces).subarray(0, -1));
    return path;
  }

  test('puts the mount points before it and the agent behind it', async () => {
    const bytes = Buffer.concat(await pack(writeArchive()));

    const scanner = new CpioScanner();
    scanner.push(bytes);
    scanner.end();
    const listed = archives(bytes).map((archive) =>
      execFileSync('cpio', ['-t', '--quiet'], { input: archive, encoding: 'utf8' }).split('\n'),
    );
    expect(listed).toMatchObject([
      expect.arrayContaining(['dev', 'proc', 'sys', 'run', 'tmp', 'dev/console']),
      ['hello', '.forklet', ''],
      ['.forklet', '.forklet/agent', ''],
    ]);
  });

  test('makes every segment a multiple of 4 bytes long', async () => {
    const segments = await pack(writeArchive());

    expect(segments.filter(({ byteLength }) => byteLength % 4 !== 0)).toEqual([]);
  });

  test('refuses a file of another kind, and says which', async () => {
    const path = join(directory, 'root.tar');
    execFileSync('tar', ['-czf', path, '-C', root, '.']);

    await expect(pack(path)).rejects.toMatchObject({
      code: 'ERR_VM_BAD_ROOT',
      message: `Root '${path}' is compressed with gzip; unpack it first.`,
    });
  });

  test('refuses a device', async () => {
    await expect(pack('/dev/null')).rejects.toMatchObject({ code: 'ERR_VM_BAD_ROOT' });
  });

  test('refuses one that does not fit', async () => {
    await expect(pack(writeArchive(), { maxBytes: 1000 })).rejects.toMatchObject({
      code: 'ERR_VM_NO_MEMORY',
    });
  });
});

test('maxRootBytes() leaves room for the kernel and a second copy', () => {
  expect(maxRootBytes(128 * MiB)).toBe(52 * MiB);
  expect(maxRootBytes(16 * MiB)).toBe(0);
});
