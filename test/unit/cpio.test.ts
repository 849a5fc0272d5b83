import { execFileSync } from 'node:child_process';
import { gzipSync } from 'node:zlib';

import { describe, expect, test } from 'vitest';

import { CpioError, CpioScanner, CpioWriter, FileKind } from '../../lib/internal/boot/cpio.js';

const REGULAR = FileKind.regular | 0o644;

function archive(): Buffer {
  const writer = new CpioWriter();
  return Buffer.concat([
    writer.entry({ path: 'etc', mode: FileKind.directory | 0o755 }, 0),
    writer.entry({ path: 'etc/name', mode: REGULAR, data: Buffer.from('forklet') }, 0),
    writer.entry(
      { path: 'link', mode: FileKind.symlink | 0o777, data: Buffer.from('etc/name') },
      0,
    ),
    writer.trailer(),
  ]);
}

function scan(...chunks: Buffer[]): void {
  const scanner = new CpioScanner();
  for (const chunk of chunks) scanner.push(chunk);
  scanner.end();
}

function problem(...chunks: Buffer[]): string {
  try {
    scan(...chunks);
  } catch (error) {
    expect(error).toBeInstanceOf(CpioError);
    return (error as Error).message;
  }
  throw new Error('the archive was accepted');
}

describe('CpioWriter', () => {
  test('writes what cpio lists', () => {
    const listed = execFileSync('cpio', ['-tv', '--quiet', '--numeric-uid-gid'], {
      input: archive(),
      encoding: 'utf8',
    });

    const lines = listed.trim().split('\n');
    expect(lines.map((line) => line.replace(/\s+/g, ' '))).toEqual([
      'drwxr-xr-x 1 0 0 0 Jan 1 1970 etc',
      '-rw-r--r-- 1 0 0 7 Jan 1 1970 etc/name',
      'lrwxrwxrwx 1 0 0 8 Jan 1 1970 link -> etc/name',
    ]);
  });

  test('makes every piece a multiple of 4 bytes long', () => {
    const writer = new CpioWriter();

    for (let size = 0; size < 9; size++) {
      const entry = { path: 'x'.repeat(size + 1), mode: REGULAR, data: Buffer.alloc(size) };
      expect(writer.entry(entry, 0).length % 4).toBe(0);
    }
  });

  test('refuses what the format or the kernel cannot hold', () => {
    const writer = new CpioWriter();

    expect(() => writer.header({ path: '', mode: REGULAR }, 0)).toThrow(RangeError);
    expect(() => writer.header({ path: 'x'.repeat(4096), mode: REGULAR }, 0)).toThrow(RangeError);
    expect(() => writer.header({ path: 'x', mode: REGULAR, dataBytes: 2 ** 32 }, 0)).toThrow(
      RangeError,
    );
  });
});

describe('CpioScanner', () => {
  test('accepts an archive wherever it is split', () => {
    const bytes = archive();

    for (let at = 0; at <= bytes.length; at++) {
      expect(() => scan(bytes.subarray(0, at), bytes.subarray(at))).not.toThrow();
    }
  });

  test('accepts archives behind each other, with zeros between and behind them', () => {
    const zeros = Buffer.alloc(512);

    expect(() => scan(archive(), zeros, archive(), zeros)).not.toThrow();
  });

  test('accepts what cpio makes', () => {
    const bytes = execFileSync('cpio', ['-o', '-H', 'newc', '--quiet'], {
      input: 'cpio.test.ts\nprotocol.test.ts\n',
      cwd: import.meta.dirname ?? new URL('.', import.meta.url).pathname,
    });

    expect(() => scan(bytes)).not.toThrow();
  });

  test('accepts the format with checksums', () => {
    const bytes = execFileSync('cpio', ['-o', '-H', 'crc', '--quiet'], {
      input: 'cpio.test.ts\n',
      cwd: new URL('.', import.meta.url).pathname,
    });

    expect(() => scan(bytes)).not.toThrow();
  });

  test('refuses an archive that is cut off, wherever', () => {
    const bytes = archive();
    // What follows the trailer's name is padding.
    const end = bytes.indexOf('TRAILER!!!') + 11;

    for (let at = 1; at < end; at++) {
      expect(problem(bytes.subarray(0, at))).toMatch(/truncated|not a cpio archive/);
    }
  });

  test('says what other files are', () => {
    expect(problem(gzipSync(archive()))).toContain('compressed with gzip; unpack it first');
    expect(problem(Buffer.from('28b52ffd00000000', 'hex'))).toContain('zstd');
    expect(problem(Buffer.from('070707000000'))).toContain("'cpio -o -H newc'");
    expect(problem(Buffer.from('#!/bin/sh\n'))).toBe('is not a cpio archive');
    expect(problem(Buffer.from('07'))).toBe('is not a cpio archive');
    expect(problem(Buffer.alloc(0))).toBe('is empty');
  });

  test('names the place of damage', () => {
    const bytes = archive();
    bytes.write('XX', bytes.indexOf('070701', 1));

    expect(problem(bytes)).toContain('no entry at byte 116');
  });

  test('refuses a header that is not hexadecimal, and an impossible name', () => {
    const header = archive();
    header.write('zzzz', 20);
    const name = archive();
    name.write('00002000', 6 + 11 * 8);

    expect(problem(header)).toContain('malformed header at byte 0');
    expect(problem(name)).toContain('name of 8192 bytes');
  });

  test('refuses something else behind the trailer', () => {
    expect(problem(archive(), gzipSync(archive()))).toContain('compressed with gzip');
    expect(problem(archive(), Buffer.from('x'))).toContain('is damaged');
  });
});
