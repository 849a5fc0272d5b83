// Stats and Dirent of guest files, shaped like those of node:fs, whose constructors are private.

import { type BigIntStats, constants, type Dirent, type Stats } from 'node:fs';

import type { StatRecord } from '../protocol/protocol.js';

const NS_PER_MS = 1_000_000n;

class ModeTests {
  readonly #format: number;

  constructor(mode: number) {
    this.#format = mode & constants.S_IFMT;
  }

  isFile(): boolean {
    return this.#format === constants.S_IFREG;
  }

  isDirectory(): boolean {
    return this.#format === constants.S_IFDIR;
  }

  isBlockDevice(): boolean {
    return this.#format === constants.S_IFBLK;
  }

  isCharacterDevice(): boolean {
    return this.#format === constants.S_IFCHR;
  }

  isSymbolicLink(): boolean {
    return this.#format === constants.S_IFLNK;
  }

  isFIFO(): boolean {
    return this.#format === constants.S_IFIFO;
  }

  isSocket(): boolean {
    return this.#format === constants.S_IFSOCK;
  }
}

/** Milliseconds with a fraction: exact to what a double holds, as node:fs has it. */
function milliseconds(ns: bigint): number {
  return Number(ns / NS_PER_MS) + Number(ns % NS_PER_MS) / 1e6;
}

class GuestStats extends ModeTests implements Stats {
  readonly dev: number;
  readonly ino: number;
  readonly mode: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  readonly rdev: number;
  readonly size: number;
  readonly blksize: number;
  readonly blocks: number;
  readonly atimeMs: number;
  readonly mtimeMs: number;
  readonly ctimeMs: number;
  readonly birthtimeMs: number;
  readonly atime: Date;
  readonly mtime: Date;
  readonly ctime: Date;
  readonly birthtime: Date;

  constructor(record: StatRecord) {
    super(record.mode);
    this.dev = Number(record.dev);
    this.ino = Number(record.ino);
    this.mode = record.mode;
    this.nlink = Number(record.nlink);
    this.uid = record.uid;
    this.gid = record.gid;
    this.rdev = Number(record.rdev);
    this.size = Number(record.size);
    this.blksize = record.blksize;
    this.blocks = Number(record.blocks);
    this.atimeMs = milliseconds(record.atimeNs);
    this.mtimeMs = milliseconds(record.mtimeNs);
    this.ctimeMs = milliseconds(record.ctimeNs);
    this.birthtimeMs = milliseconds(record.birthtimeNs);
    this.atime = new Date(Math.round(this.atimeMs));
    this.mtime = new Date(Math.round(this.mtimeMs));
    this.ctime = new Date(Math.round(this.ctimeMs));
    this.birthtime = new Date(Math.round(this.birthtimeMs));
  }
}

class GuestBigIntStats extends ModeTests implements BigIntStats {
  readonly dev: bigint;
  readonly ino: bigint;
  readonly mode: bigint;
  readonly nlink: bigint;
  readonly uid: bigint;
  readonly gid: bigint;
  readonly rdev: bigint;
  readonly size: bigint;
  readonly blksize: bigint;
  readonly blocks: bigint;
  readonly atimeMs: bigint;
  readonly mtimeMs: bigint;
  readonly ctimeMs: bigint;
  readonly birthtimeMs: bigint;
  readonly atimeNs: bigint;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
  readonly birthtimeNs: bigint;
  readonly atime: Date;
  readonly mtime: Date;
  readonly ctime: Date;
  readonly birthtime: Date;

  constructor(record: StatRecord) {
    super(record.mode);
    this.dev = record.dev;
    this.ino = record.ino;
    this.mode = BigInt(record.mode);
    this.nlink = record.nlink;
    this.uid = BigInt(record.uid);
    this.gid = BigInt(record.gid);
    this.rdev = record.rdev;
    this.size = record.size;
    this.blksize = BigInt(record.blksize);
    this.blocks = record.blocks;
    this.atimeNs = record.atimeNs;
    this.mtimeNs = record.mtimeNs;
    this.ctimeNs = record.ctimeNs;
    this.birthtimeNs = record.birthtimeNs;
    this.atimeMs = record.atimeNs / NS_PER_MS;
    this.mtimeMs = record.mtimeNs / NS_PER_MS;
    this.ctimeMs = record.ctimeNs / NS_PER_MS;
    this.birthtimeMs = record.birthtimeNs / NS_PER_MS;
    this.atime = new Date(Number(this.atimeMs));
    this.mtime = new Date(Number(this.mtimeMs));
    this.ctime = new Date(Number(this.ctimeMs));
    this.birthtime = new Date(Number(this.birthtimeMs));
  }
}

/** `DT_*` of `<dirent.h>` are the format bits of a mode, shifted. */
const DT_SHIFT = 12;

class GuestDirent<Name extends string | Buffer> extends ModeTests {
  readonly name: Name;
  readonly parentPath: string;
  readonly path: string;

  constructor(name: Name, type: number, parentPath: string) {
    super(type << DT_SHIFT);
    this.name = name;
    this.parentPath = parentPath;
    this.path = parentPath;
  }
}

export function makeStats(record: StatRecord): Stats {
  return new GuestStats(record);
}

export function makeBigIntStats(record: StatRecord): BigIntStats {
  return new GuestBigIntStats(record);
}

export function makeDirent<Name extends string | Buffer>(
  name: Name,
  type: number,
  parentPath: string,
): Dirent<Name> {
  return new GuestDirent(name, type, parentPath);
}
