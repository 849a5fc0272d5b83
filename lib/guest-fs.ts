import type { BigIntStats, Dirent, Stats } from 'node:fs';

import { AbortError, guestFileError, VmError } from './errors.js';
import type { Operation } from './internal/agent-connection.js';
import { Collector } from './internal/collector.js';
import { observe } from './internal/diagnostics.js';
import {
  type CheckedWrite,
  checkMkdir,
  checkReaddir,
  checkReadFile,
  checkRm,
  checkStat,
  checkWriteFile,
  type GuestPath,
  pathText,
} from './internal/fs-options.js';
import type { Guest } from './internal/guest.js';
import { makeBigIntStats, makeDirent, makeStats } from './internal/guest-stats.js';
import { writeContents } from './internal/guest-write.js';
import {
  DirentDecoder,
  encodeMkdir,
  encodeReaddir,
  encodeReadFile,
  encodeRemove,
  encodeStat,
  encodeWriteFile,
  ProtocolError,
  type ReplyMessage,
} from './internal/protocol.js';

export type { GuestPath } from './internal/fs-options.js';

/** Most bytes that a directory's entries may take; some 200 000 names of usual length. */
const MAX_DIRECTORY_BYTES = 8 * 1024 * 1024;

const EISDIR = 21;
const ECANCELED = 125;
/** Errors of the contents rather than of opening the file: ENOSPC, EFBIG, EIO, EDQUOT. */
const WRITE_ERRNOS: ReadonlySet<number> = new Set([28, 27, 5, 122]);

/** What `readFile` takes besides the path. */
export interface ReadFileOptions {
  /** Encoding of the returned string; without it a Buffer is returned. */
  readonly encoding?: BufferEncoding | null;
  /** Aborts the operation. */
  readonly signal?: AbortSignal;
  /**
   * Largest file that is read, in bytes, 0 to 2^31 - 1; a larger one is a RangeError with code
   * `ERR_FS_FILE_TOO_LARGE`. A guest decides how much a file yields, so set it where that matters.
   *
   * @defaultValue 2^31 - 1, which is node:fs's own limit
   */
  readonly maxBytes?: number;
}

/** What `writeFile` takes besides the path and the data. */
export interface WriteFileOptions {
  /** Encoding of strings. @defaultValue `'utf8'` */
  readonly encoding?: BufferEncoding | null;
  /** Permission bits of a file that is created. @defaultValue 0o666, less the guest's umask 022 */
  readonly mode?: number;
  /** `'w'` truncates, `'a'` appends; with an `x` the file must not exist. @defaultValue `'w'` */
  readonly flag?: 'w' | 'wx' | 'a' | 'ax';
  /** Aborts the operation; what was written by then stays. */
  readonly signal?: AbortSignal;
}

/** What `writeFile` writes. */
export type FileContents =
  | string
  | NodeJS.ArrayBufferView
  | Iterable<string | NodeJS.ArrayBufferView>
  | AsyncIterable<string | NodeJS.ArrayBufferView>;

/** What `mkdir` takes besides the path. */
export interface MkdirOptions {
  /** Creates missing parents, and takes an existing directory. @defaultValue `false` */
  readonly recursive?: boolean;
  /** Permission bits. @defaultValue 0o777, less the guest's umask 022 */
  readonly mode?: number;
}

/** What `rm` takes besides the path. */
export interface RmOptions {
  /** Removes directories with everything in them. @defaultValue `false` */
  readonly recursive?: boolean;
  /** Whether a missing path is no error. @defaultValue `false` */
  readonly force?: boolean;
}

/** What `stat` and `lstat` take besides the path. */
export interface StatOptions {
  /** Whether numbers are bigints. @defaultValue `false` */
  readonly bigint?: boolean;
}

/** What `readdir` takes besides the path. */
export interface ReaddirOptions {
  /** Encoding of names; `'buffer'` for Buffers. @defaultValue `'utf8'` */
  readonly encoding?: BufferEncoding | 'buffer' | null;
  /** Whether entries are `Dirent`s instead of names. @defaultValue `false` */
  readonly withFileTypes?: boolean;
}

/**
 * Files of the guest, as `node:fs/promises` has them for the host's.
 *
 * Paths are the guest's: absolute, or relative to `/`; a Uint8Array for names that are not UTF-8.
 * Failures of a file are `NodeJS.ErrnoException`s with `code` (`'ENOENT'`), negative `errno`,
 * `syscall` and `path`. Failures of the VM are {@link VmError}s: `ERR_VM_EXITED`, `ERR_VM_CLOSED`,
 * `ERR_VM_AGENT_UNRESPONSIVE`, `ERR_VM_AGENT_PROTOCOL`. Wrong arguments are TypeErrors and
 * RangeErrors that name the option.
 */
export class GuestFs {
  readonly #guest: Guest;

  /** @internal */
  constructor(guest: Guest) {
    this.#guest = guest;
  }

  /** Reads a whole file, of any kind and size up to `maxBytes`. */
  readFile(
    path: GuestPath,
    options: BufferEncoding | (ReadFileOptions & { encoding: BufferEncoding }),
  ): Promise<string>;
  readFile(
    path: GuestPath,
    options?: (ReadFileOptions & { encoding?: null }) | null,
  ): Promise<Buffer>;
  readFile(
    path: GuestPath,
    options?: ReadFileOptions | BufferEncoding | null,
  ): Promise<string | Buffer>;
  async readFile(
    path: GuestPath,
    options?: ReadFileOptions | BufferEncoding | null,
  ): Promise<string | Buffer> {
    const checked = checkReadFile(path, options);
    const { maxBytes, encoding, signal } = checked;
    return this.#observed('readFile', path, { maxBytes }, async () => {
      if (signal?.aborted) throw new AbortError(signal.reason);
      const operation = this.#guest.agent.begin('other', ({ id, output }) =>
        encodeReadFile(id, path, { outputLimit: output.takeInitialLimit() }),
      );
      const collector = new Collector(operation.output, maxBytes, () => operation.cancel());
      const reply = await this.#reply(operation, signal);
      if (collector.overflowed) throw fileTooLarge(maxBytes);
      if (reply.errno !== 0) {
        const syscall = reply.errno === EISDIR ? 'read' : 'open';
        throw guestFileError(reply.errno, syscall, pathText(path));
      }
      const { bytes } = collector;
      const value = encoding === null ? bytes : bytes.toString(encoding);
      return { value, result: { bytes: bytes.length } };
    });
  }

  /**
   * Writes a file, and creates it if need be. Streams and other iterables are read as fast as the
   * guest writes.
   */
  async writeFile(
    path: GuestPath,
    data: FileContents,
    options?: WriteFileOptions | BufferEncoding | null,
  ): Promise<void> {
    const checked: CheckedWrite = checkWriteFile(path, data, options);
    const { flag, mode, signal } = checked;
    await this.#observed('writeFile', path, { flag, mode }, async () => {
      if (signal?.aborted) throw new AbortError(signal.reason);
      const operation = this.#guest.agent.begin('write', ({ id }) =>
        encodeWriteFile(id, path, {
          append: flag.startsWith('a'),
          exclusive: flag.endsWith('x'),
          ...(mode !== undefined && { mode }),
        }),
      );
      const written = writeContents(operation, checked);
      written.catch(() => {});
      const reply = await this.#reply(operation, signal);
      // Nobody aborted, so the source failed, and says how.
      if (reply.errno === ECANCELED) await written;
      if (reply.errno !== 0) {
        const syscall = WRITE_ERRNOS.has(reply.errno) ? 'write' : 'open';
        throw guestFileError(reply.errno, syscall, pathText(path));
      }
      return { value: undefined, result: { bytes: await written } };
    });
  }

  /** Lists a directory, without `.` and `..`, in no particular order. */
  readdir(
    path: GuestPath,
    options: 'buffer' | { encoding: 'buffer'; withFileTypes?: false },
  ): Promise<Buffer[]>;
  readdir(
    path: GuestPath,
    options: ReaddirOptions & { encoding?: BufferEncoding | null; withFileTypes: true },
  ): Promise<Dirent[]>;
  readdir(
    path: GuestPath,
    options?:
      | (ReaddirOptions & { encoding?: BufferEncoding | null; withFileTypes?: false })
      | BufferEncoding
      | null,
  ): Promise<string[]>;
  async readdir(
    path: GuestPath,
    options?: ReaddirOptions | BufferEncoding | 'buffer' | null,
  ): Promise<string[] | Buffer[] | Dirent[]> {
    const { encoding, withFileTypes } = checkReaddir(path, options);
    type Entries = string[] | Buffer[] | Dirent[];
    return this.#observed<Entries>('readdir', path, { withFileTypes }, async () => {
      const operation = this.#guest.agent.begin('other', ({ id, output }) =>
        encodeReaddir(id, path, { outputLimit: output.takeInitialLimit() }),
      );
      const collector = new Collector(operation.output, MAX_DIRECTORY_BYTES, () =>
        operation.cancel(),
      );
      const reply = await this.#reply(operation, undefined);
      if (collector.overflowed) {
        throw new VmError({
          code: 'ERR_VM_MAX_OUTPUT',
          message: `The entries of '${pathText(path)}' take more than ${MAX_DIRECTORY_BYTES} bytes`,
        });
      }
      if (reply.errno !== 0) throw guestFileError(reply.errno, 'scandir', pathText(path));
      const records = decodeEntries(collector.bytes);
      const result = { entries: records.length };
      if (encoding === 'buffer') {
        return { value: records.map(({ name }) => Buffer.from(name)), result };
      }
      if (withFileTypes) {
        const parent = pathText(path);
        return { value: records.map((record) => makeDirent(record, parent, encoding)), result };
      }
      return { value: records.map(({ name }) => name.toString(encoding)), result };
    });
  }

  /** Describes a file; symbolic links are followed. */
  stat(path: GuestPath, options: StatOptions & { bigint: true }): Promise<BigIntStats>;
  stat(path: GuestPath, options?: StatOptions & { bigint?: false }): Promise<Stats>;
  stat(path: GuestPath, options?: StatOptions): Promise<Stats | BigIntStats>;
  async stat(path: GuestPath, options?: StatOptions): Promise<Stats | BigIntStats> {
    return this.#stat('stat', path, options);
  }

  /** Describes a file; a symbolic link is described itself. */
  lstat(path: GuestPath, options: StatOptions & { bigint: true }): Promise<BigIntStats>;
  lstat(path: GuestPath, options?: StatOptions & { bigint?: false }): Promise<Stats>;
  lstat(path: GuestPath, options?: StatOptions): Promise<Stats | BigIntStats>;
  async lstat(path: GuestPath, options?: StatOptions): Promise<Stats | BigIntStats> {
    return this.#stat('lstat', path, options);
  }

  /** Creates a directory. Unlike node:fs's, it does not say which parents it created. */
  async mkdir(path: GuestPath, options?: MkdirOptions | number | null): Promise<void> {
    const { recursive, mode } = checkMkdir(path, options);
    await this.#observed('mkdir', path, { recursive, mode }, async () => {
      const operation = this.#guest.agent.begin('other', ({ id }) =>
        encodeMkdir(id, path, { recursive, ...(mode !== undefined && { mode }) }),
      );
      const reply = await this.#reply(operation, undefined);
      if (reply.errno !== 0) throw guestFileError(reply.errno, 'mkdir', pathText(path));
      return { value: undefined };
    });
  }

  /**
   * Removes a file, or with `recursive` a directory. A directory without `recursive` is
   * `ERR_FS_EISDIR`, as in node:fs.
   */
  async rm(path: GuestPath, options?: RmOptions): Promise<void> {
    const { recursive, force } = checkRm(path, options);
    await this.#observed('rm', path, { recursive, force }, async () => {
      const operation = this.#guest.agent.begin('other', ({ id }) =>
        encodeRemove(id, path, { recursive, force }),
      );
      const reply = await this.#reply(operation, undefined);
      if (reply.errno !== 0) {
        const error = guestFileError(reply.errno, 'rm', pathText(path));
        if (reply.errno === EISDIR && !recursive) error.code = 'ERR_FS_EISDIR';
        throw error;
      }
      return { value: undefined };
    });
  }

  async #stat(
    method: 'stat' | 'lstat',
    path: GuestPath,
    options: StatOptions | undefined,
  ): Promise<Stats | BigIntStats> {
    const { bigint } = checkStat(`vm.fs.${method}()`, path, options);
    return this.#observed(method, path, {}, async () => {
      const operation = this.#guest.agent.begin('other', ({ id }) =>
        encodeStat(id, path, { followLinks: method === 'stat' }),
      );
      const reply = await this.#reply(operation, undefined);
      if (reply.errno !== 0) throw guestFileError(reply.errno, method, pathText(path));
      if (reply.stat === null) throw brokenReply('a stat without its fields');
      return { value: bigint ? makeBigIntStats(reply.stat) : makeStats(reply.stat) };
    });
  }

  /** Waits for the reply; an abort waits until the guest has let go. */
  async #reply(operation: Operation, signal: AbortSignal | undefined): Promise<ReplyMessage> {
    const onAbort = (): void => operation.cancel();
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      const reply = await operation.reply;
      if (signal?.aborted && reply.errno !== 0) throw new AbortError(signal.reason);
      return reply;
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  async #observed<T>(
    operation: string,
    path: GuestPath,
    rest: Readonly<Record<string, unknown>>,
    run: () => Promise<{ value: T; result?: Readonly<Record<string, unknown>> }>,
  ): Promise<T> {
    const observation = observe('fs', this.#guest, operation, () => ({
      path: pathText(path),
      ...rest,
    }));
    try {
      const { value, result } = await run();
      observation.succeed(result);
      return value;
    } catch (error) {
      observation.fail(error);
      throw error;
    }
  }
}

function fileTooLarge(maxBytes: number): RangeError {
  const error = new RangeError(`The file is larger than ${maxBytes} bytes`);
  return Object.assign(error, { code: 'ERR_FS_FILE_TOO_LARGE' });
}

function brokenReply(what: string, cause?: unknown): VmError {
  return new VmError({
    code: 'ERR_VM_AGENT_PROTOCOL',
    message: `The guest agent answered with ${what}`,
    ...(cause !== undefined && { cause }),
  });
}

function decodeEntries(bytes: Buffer): { name: Buffer; type: number }[] {
  const decoder = new DirentDecoder();
  try {
    const records = decoder.push(bytes);
    decoder.end();
    return records;
  } catch (cause) {
    if (!(cause instanceof ProtocolError)) throw cause;
    throw brokenReply(`a broken directory listing: ${cause.message}`, cause);
  }
}
