/**
 * Trees as FK_FILE_UNPACK takes and FK_FILE_PACK sends them: entries and the contents of files. See
 * protocol.ts, and `struct fk_tree_entry` of protocol.h for what may follow what.
 */

import { ProtocolError } from './decode.js';
import { MAX_NAME_BYTES, MAX_PATH_BYTES, TreeFlag, TreeType } from './numbers.js';

/** Bytes of an entry before its name. */
export const TREE_ENTRY_BYTES = 32;
/** Bytes of a run before its contents. */
export const TREE_RUN_BYTES = 16;

/** Permission bits that a tree carries. setuid and setgid are none of them. */
export const TREE_MODE_BITS = 0o1777;

/** The fixed part of an entry. */
export interface TreeEntry {
  /** One of {@link TreeType}. */
  readonly type: number;
  /** Of a file: a link may refer to it. */
  readonly linked: boolean;
  readonly nameBytes: number;
  readonly mode: number;
  /** Bytes of a file, or of what a symbolic link says; which file a link is; what an end skipped. */
  readonly size: number;
  /** Nanoseconds since 1970. */
  readonly accessedNs: bigint;
  readonly modifiedNs: bigint;
}

export interface TreeRun {
  readonly offset: number;
  readonly bytes: number;
}

export type TreeEntryFields = Pick<TreeEntry, 'type'> &
  Partial<Omit<TreeEntry, 'type' | 'nameBytes'>> & {
    readonly name?: Uint8Array;
    /** What a symbolic link says; sets its size. */
    readonly target?: Uint8Array;
  };

const NOTHING = Buffer.alloc(0);

export function encodeTreeEntry(fields: TreeEntryFields): Buffer {
  const { type, name = NOTHING, target = NOTHING } = fields;
  const bytes = Buffer.alloc(TREE_ENTRY_BYTES + name.length + target.length);
  bytes.writeUInt8(type, 0);
  bytes.writeUInt8(fields.linked ? TreeFlag.linked : 0, 1);
  bytes.writeUInt16LE(name.length, 2);
  bytes.writeUInt32LE(fields.mode ?? 0, 4);
  bytes.writeBigUInt64LE(BigInt(fields.size ?? target.length), 8);
  bytes.writeBigInt64LE(fields.accessedNs ?? 0n, 16);
  bytes.writeBigInt64LE(fields.modifiedNs ?? 0n, 24);
  bytes.set(name, TREE_ENTRY_BYTES);
  bytes.set(target, TREE_ENTRY_BYTES + name.length);
  return bytes;
}

/** Writes the header of a run to where there is room for it. */
export function writeTreeRun(bytes: Buffer, at: number, run: TreeRun): void {
  bytes.writeBigUInt64LE(BigInt(run.offset), at);
  bytes.writeUInt32LE(run.bytes, at + 8);
  bytes.writeUInt32LE(0, at + 12);
}

export function encodeTreeRun(run: TreeRun): Buffer {
  const bytes = Buffer.alloc(TREE_RUN_BYTES);
  writeTreeRun(bytes, 0, run);
  return bytes;
}

function readSize(bytes: Buffer, at: number): number {
  const size = bytes.readBigUInt64LE(at);
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw new ProtocolError(`a tree with size ${size}`);
  return Number(size);
}

/** What the fixed part of an entry says, as far as that can be judged by itself. */
export function parseTreeEntry(bytes: Buffer): TreeEntry {
  const flags = bytes.readUInt8(1);
  const entry: TreeEntry = {
    type: bytes.readUInt8(0),
    linked: flags === TreeFlag.linked,
    nameBytes: bytes.readUInt16LE(2),
    mode: bytes.readUInt32LE(4),
    size: readSize(bytes, 8),
    accessedNs: bytes.readBigInt64LE(16),
    modifiedNs: bytes.readBigInt64LE(24),
  };
  const { type, nameBytes, mode, size } = entry;
  const flagsFit = flags === 0 || (flags === TreeFlag.linked && type === TreeType.file);
  if (!flagsFit || nameBytes > MAX_NAME_BYTES || mode > TREE_MODE_BITS || !sizeFits(type, size)) {
    throw new ProtocolError(`malformed entry of type ${type} in a tree`);
  }
  return entry;
}

function sizeFits(type: number, size: number): boolean {
  switch (type) {
    case TreeType.file:
    case TreeType.link:
    case TreeType.end:
      return true;
    case TreeType.symlink:
      return size >= 1 && size <= MAX_PATH_BYTES;
    case TreeType.directory:
    case TreeType.leave:
      return size === 0;
    default:
      return false;
  }
}

/** A run of a file of that size, whose contents are known up to an offset. */
export function parseTreeRun(bytes: Buffer, known: number, size: number): TreeRun {
  const run = { offset: readSize(bytes, 0), bytes: bytes.readUInt32LE(8) };
  const fits = run.offset >= known && run.offset <= size && run.bytes <= size - run.offset;
  if (!fits || bytes.readUInt32LE(12) !== 0) throw new ProtocolError('malformed run in a tree');
  return run;
}
