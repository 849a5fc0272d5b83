/** Requests about files of the guest. See protocol.ts. */

import { encodeFrame, encodeRecord, uint32, uint64 } from './encode.js';
import { FileFlag, FileOp, FrameType, Tag } from './numbers.js';

const UINT64_MAX = 0xffff_ffff_ffff_ffffn;

/** Paths are absolute or relative to "/"; bytes that are not UTF-8 are passed as a Uint8Array. */
export type GuestPath = string | Uint8Array;

function encodePath(tag: number, path: GuestPath): Buffer {
  if (typeof path !== 'string' && path.includes(0)) {
    throw new TypeError('Path contains a null byte');
  }
  return encodeRecord(tag, path);
}

function encodeFile(id: number, op: number, path: GuestPath, ...more: Buffer[]): Buffer {
  const payload = [encodePath(Tag.path, path), ...more];
  return encodeFrame({ type: FrameType.file, id, value: op, payload });
}

function flags(value: number): Buffer {
  return encodeRecord(Tag.flags, uint32(value));
}

export function encodeReadFile(
  id: number,
  path: GuestPath,
  options: { outputLimit?: number; start?: number; byteCount?: number } = {},
): Buffer {
  const records = [encodeRecord(Tag.outputLimit, uint64(options.outputLimit ?? 0))];
  if (options.start !== undefined || options.byteCount !== undefined) {
    const range = uint64(options.start ?? 0, options.byteCount ?? UINT64_MAX);
    records.push(encodeRecord(Tag.range, range));
  }
  return encodeFile(id, FileOp.read, path, ...records);
}

export interface WriteFileRequest {
  mode?: number;
  /** Offset of the first byte; not with `append` or `atomic`. */
  start?: number;
  /** At most one of these. */
  append?: boolean;
  update?: boolean;
  atomic?: boolean;
  /** Not with `update`. */
  exclusive?: boolean;
}

export function encodeWriteFile(
  id: number,
  path: GuestPath,
  request: WriteFileRequest = {},
): Buffer {
  const bits =
    (request.append ? FileFlag.append : 0) |
    (request.update ? FileFlag.update : 0) |
    (request.atomic ? FileFlag.atomic : 0) |
    (request.exclusive ? FileFlag.exclusive : 0);
  const records = [flags(bits)];
  if (request.mode !== undefined) records.push(encodeRecord(Tag.mode, uint32(request.mode)));
  if (request.start !== undefined) {
    records.push(encodeRecord(Tag.range, uint64(request.start, UINT64_MAX)));
  }
  return encodeFile(id, FileOp.write, path, ...records);
}

/** Whether a request is about what a symbolic link leads to, which is the default, or the link. */
export interface LinkChoice {
  followLinks?: boolean;
}

function nofollow({ followLinks = true }: LinkChoice): number {
  return followLinks ? 0 : FileFlag.nofollow;
}

export function encodeStat(id: number, path: GuestPath, options: LinkChoice = {}): Buffer {
  return encodeFile(id, FileOp.stat, path, flags(nofollow(options)));
}

export function encodeReaddir(
  id: number,
  path: GuestPath,
  options: { outputLimit?: number; recursive?: boolean } = {},
): Buffer {
  const limit = encodeRecord(Tag.outputLimit, uint64(options.outputLimit ?? 0));
  return encodeFile(
    id,
    FileOp.readdir,
    path,
    limit,
    flags(options.recursive ? FileFlag.recursive : 0),
  );
}

export function encodeMkdir(
  id: number,
  path: GuestPath,
  options: { mode?: number; recursive?: boolean } = {},
): Buffer {
  const bits = options.recursive ? FileFlag.recursive : 0;
  const records = [flags(bits)];
  if (options.mode !== undefined) records.push(encodeRecord(Tag.mode, uint32(options.mode)));
  return encodeFile(id, FileOp.mkdir, path, ...records);
}

export function encodeRemove(
  id: number,
  path: GuestPath,
  options: { recursive?: boolean; force?: boolean } = {},
): Buffer {
  const bits = (options.recursive ? FileFlag.recursive : 0) | (options.force ? FileFlag.force : 0);
  return encodeFile(id, FileOp.remove, path, flags(bits));
}

export function encodeReadlink(id: number, path: GuestPath): Buffer {
  return encodeFile(id, FileOp.readlink, path);
}

export function encodeRealpath(id: number, path: GuestPath): Buffer {
  return encodeFile(id, FileOp.realpath, path);
}

function encodeTwoPaths(
  id: number,
  op: number,
  path: GuestPath,
  destination: GuestPath,
  ...more: Buffer[]
): Buffer {
  return encodeFile(id, op, path, encodePath(Tag.destination, destination), ...more);
}

export function encodeRename(id: number, path: GuestPath, destination: GuestPath): Buffer {
  return encodeTwoPaths(id, FileOp.rename, path, destination);
}

export function encodeLink(id: number, path: GuestPath, destination: GuestPath): Buffer {
  return encodeTwoPaths(id, FileOp.link, path, destination);
}

/** A link at `destination` that says `target`. */
export function encodeSymlink(id: number, target: GuestPath, destination: GuestPath): Buffer {
  return encodeTwoPaths(id, FileOp.symlink, target, destination);
}

/** `mode` as in access(2). */
export function encodeAccess(id: number, path: GuestPath, mode: number): Buffer {
  return encodeFile(id, FileOp.access, path, encodeRecord(Tag.mode, uint32(mode)));
}

export function encodeChmod(id: number, path: GuestPath, mode: number): Buffer {
  return encodeFile(id, FileOp.chmod, path, encodeRecord(Tag.mode, uint32(mode)));
}

/** `0xffff_ffff` leaves user or group as it is. */
export function encodeChown(
  id: number,
  path: GuestPath,
  options: LinkChoice & { user: number; group: number },
): Buffer {
  const owner = encodeRecord(Tag.owner, uint32(options.user, options.group));
  return encodeFile(id, FileOp.chown, path, owner, flags(nofollow(options)));
}

/** Nanoseconds since 1970. */
export function encodeUtimes(
  id: number,
  path: GuestPath,
  options: LinkChoice & { accessedNs: bigint; modifiedNs: bigint },
): Buffer {
  const both = [options.accessedNs, options.modifiedNs].map((ns) => BigInt.asUintN(64, ns));
  const times = encodeRecord(Tag.times, uint64(...both));
  return encodeFile(id, FileOp.utimes, path, times, flags(nofollow(options)));
}

export function encodeTruncate(id: number, path: GuestPath, bytes: number): Buffer {
  return encodeFile(id, FileOp.truncate, path, encodeRecord(Tag.size, uint64(bytes)));
}

export function encodeCopyFile(
  id: number,
  path: GuestPath,
  destination: GuestPath,
  options: { exclusive?: boolean } = {},
): Buffer {
  const bits = flags(options.exclusive ? FileFlag.exclusive : 0);
  return encodeTwoPaths(id, FileOp.copy, path, destination, bits);
}

export function encodeWatch(
  id: number,
  path: GuestPath,
  options: { outputLimit?: number; recursive?: boolean } = {},
): Buffer {
  const limit = encodeRecord(Tag.outputLimit, uint64(options.outputLimit ?? 0));
  const bits = flags(options.recursive ? FileFlag.recursive : 0);
  return encodeFile(id, FileOp.watch, path, limit, bits);
}

/** The tree follows as input, see protocol-tree.ts. */
export function encodeUnpack(id: number, path: GuestPath): Buffer {
  return encodeFile(id, FileOp.unpack, path);
}

export function encodePack(
  id: number,
  path: GuestPath,
  options: { outputLimit?: number } = {},
): Buffer {
  const limit = encodeRecord(Tag.outputLimit, uint64(options.outputLimit ?? 0));
  return encodeFile(id, FileOp.pack, path, limit);
}
