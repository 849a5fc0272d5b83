// Whole files at once: `readFile`, `writeFile` and `appendFile`.

import type { GuestPath } from '../../guest-fs-options.js';
import { Collector } from '../exec/collector.js';
import { encodeReadFile, encodeWriteFile } from '../protocol/protocol.js';
import type { Guest } from '../vm/guest.js';
import type { CheckedWrite } from './options.js';
import { Errno, failureOf, observeCall, replyOf } from './request.js';
import { writeContents } from './write.js';

/** Errors of the contents rather than of opening the file: ENOSPC, EFBIG, EIO, EDQUOT. */
const WRITE_ERRNOS: ReadonlySet<number> = new Set([28, 27, 5, 122]);

/** What node:fs would name in the error of a file that is read. */
export function readSyscall(errno: number): string {
  return errno === Errno.EISDIR ? 'read' : 'open';
}

/** What node:fs would name in the error of a file that is written. */
export function writeSyscall(errno: number): string {
  return WRITE_ERRNOS.has(errno) ? 'write' : 'open';
}

export function readWhole(
  guest: Guest,
  path: GuestPath,
  options: { maxBytes: number; signal: AbortSignal | undefined },
): Promise<Buffer> {
  const { maxBytes, signal } = options;
  const call = { method: 'readFile', path, rest: { maxBytes }, signal };
  return observeCall(guest, call, async () => {
    const operation = guest.agent.begin('other', ({ id, output }) =>
      encodeReadFile(id, path, { outputLimit: output.takeInitialLimit() }),
    );
    const collector = new Collector(operation.output, maxBytes, () => operation.cancel());
    const reply = await replyOf(operation, signal);
    if (collector.overflowed) throw fileTooLarge(maxBytes);
    if (reply.errno !== 0) throw failureOf(call, reply.errno, readSyscall(reply.errno));
    const { bytes } = collector;
    return { value: bytes, result: { bytes: bytes.length } };
  });
}

export function writeWhole(
  guest: Guest,
  method: 'writeFile' | 'appendFile',
  path: GuestPath,
  checked: CheckedWrite,
): Promise<void> {
  const { flag, mode, atomic, signal } = checked;
  const call = { method, path, rest: { flag, mode, atomic }, signal };
  return observeCall(guest, call, async () => {
    const operation = guest.agent.begin('write', ({ id }) =>
      encodeWriteFile(id, path, {
        append: flag.startsWith('a'),
        exclusive: flag.endsWith('x'),
        atomic,
        ...(mode !== undefined && { mode }),
      }),
    );
    const written = writeContents(operation, checked);
    written.catch(() => {});
    const reply = await replyOf(operation, signal);
    // Nobody aborted, so the source failed, and says how.
    if (reply.errno === Errno.ECANCELED) await written;
    if (reply.errno !== 0) throw failureOf(call, reply.errno, writeSyscall(reply.errno));
    return { value: undefined, result: { bytes: await written } };
  });
}

function fileTooLarge(maxBytes: number): RangeError {
  const error = new RangeError(`The file is larger than ${maxBytes} bytes`);
  return Object.assign(error, { code: 'ERR_FS_FILE_TOO_LARGE' });
}
