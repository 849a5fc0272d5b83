// Directories and trees: `readdir`.

import type { Dirent } from 'node:fs';
import { posix } from 'node:path';

import { VmError } from '../../errors.js';
import type { GuestPath } from '../../guest-fs-options.js';
import { Collector } from '../exec/collector.js';
import {
  DirentDecoder,
  type DirentRecord,
  encodeReaddir,
  ProtocolError,
} from '../protocol/protocol.js';
import type { Guest } from '../vm/guest.js';
import type { CheckedReaddir } from './options.js';
import { pathText } from './paths.js';
import { brokenReply, failureOf, observeCall, replyOf, textOrBytes } from './request.js';
import { makeDirent } from './stats.js';

/** Most bytes that entries may take; some 200 000 names of usual length. */
const MAX_LISTING_BYTES = 8 * 1024 * 1024;

const SLASH = 0x2f;

type Entries = (string | Buffer)[] | Dirent<string | Buffer>[];

export function listDirectory(
  guest: Guest,
  path: GuestPath,
  { encoding, withFileTypes, recursive, signal }: CheckedReaddir,
): Promise<Entries> {
  const call = { method: 'readdir', path, rest: { withFileTypes, recursive }, signal };
  return observeCall<Entries>(guest, call, async () => {
    const operation = guest.agent.begin('other', ({ id, output }) =>
      encodeReaddir(id, path, { outputLimit: output.takeInitialLimit(), recursive }),
    );
    const collector = new Collector(operation.output, MAX_LISTING_BYTES, () => operation.cancel());
    const reply = await replyOf(operation, signal);
    if (collector.overflowed) throw tooManyEntries(path);
    if (reply.errno !== 0) throw failureOf(call, reply.errno, 'scandir');
    const records = decode(collector.bytes, recursive);
    const value = withFileTypes
      ? toDirents(records, pathText(path), encoding)
      : records.map(({ name }) => textOrBytes(Buffer.from(name), encoding));
    return { value, result: { entries: records.length } };
  });
}

function toDirents(
  records: readonly DirentRecord[],
  parent: string,
  encoding: BufferEncoding | 'buffer',
): Dirent<string | Buffer>[] {
  // Entries of one directory come together.
  let above: Buffer = Buffer.alloc(0);
  let parentPath = parent;
  return records.map(({ name, type }) => {
    const slash = name.lastIndexOf(SLASH);
    const directory = name.subarray(0, Math.max(slash, 0));
    if (!directory.equals(above)) {
      above = directory;
      parentPath = directory.length === 0 ? parent : posix.join(parent, directory.toString());
    }
    const base = Buffer.from(name.subarray(slash + 1));
    return makeDirent(textOrBytes(base, encoding), type, parentPath);
  });
}

function decode(bytes: Buffer, recursive: boolean): DirentRecord[] {
  const decoder = new DirentDecoder({ recursive });
  try {
    const records = decoder.push(bytes);
    decoder.end();
    return records;
  } catch (cause) {
    if (!(cause instanceof ProtocolError)) throw cause;
    throw brokenReply(`a broken directory listing: ${cause.message}`, cause);
  }
}

function tooManyEntries(path: GuestPath): VmError {
  return new VmError({
    code: 'ERR_VM_MAX_OUTPUT',
    message: `The entries of '${pathText(path)}' take more than ${MAX_LISTING_BYTES} bytes`,
  });
}
