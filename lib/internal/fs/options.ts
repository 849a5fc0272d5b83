// Checks of the options of `vm.fs`.

import { constants } from 'node:fs';

import type {
  AppendFileOptions,
  DownloadOptions,
  EncodingOptions,
  FileContents,
  FileTime,
  FsOptions,
  MkdirOptions,
  ReaddirOptions,
  ReadFileOptions,
  ReadStreamOptions,
  RmOptions,
  StatOptions,
  WatchOptions,
  WriteFileOptions,
  WriteStreamOptions,
} from '../../guest-fs-options.js';
import {
  checkBoolean,
  checkEncoding,
  checkInteger,
  checkOptions,
  show,
  wrongType,
} from '../base/validate.js';
import { limitOf } from './limit.js';

/** node:fs's limit of what `readFile` returns, in bytes. */
const MAX_FILE_BYTES = 2 ** 31 - 1;

const MAX_MODE = 0o7777;
const DEFAULT_HIGH_WATER_MARK = 64 * 1024;
const MAX_HIGH_WATER_MARK = 2 ** 30;
/** Defaults of what a download may have: see DownloadOptions. */
const MAX_TRANSFER_BYTES = 4 * 2 ** 30;
const MAX_TRANSFER_ENTRIES = 1_000_000;
/** What leaves user or group as it is. */
const KEEP_ID = 0xffff_ffff;

const NS_PER_MS = 1_000_000n;
const MAX_INT64 = 2n ** 63n - 1n;

type Signal = AbortSignal | undefined;
type Text = BufferEncoding | 'buffer';
type Checked<T> = Partial<Omit<T, keyof FsOptions>> & { encoding?: unknown; signal: Signal };

/** The options of a method, known by name; those that all methods have are checked, and one signal. */
function options<T extends FsOptions>(
  method: string,
  value: T | string | null | undefined,
  known: readonly (keyof T & string)[],
): Checked<T> {
  if (value === null) return { signal: undefined } as Checked<T>;
  if (typeof value === 'string') return { encoding: value, signal: undefined } as Checked<T>;
  const given = checkOptions<T>(`vm.fs.${method}()`, value, [...known, 'timeoutMs', 'signal']);
  return { ...given, signal: limitOf(method, given) };
}

function encodingOf<T>(encoding: unknown, absent: T): BufferEncoding | T {
  return encoding === undefined || encoding === null ? absent : checkEncoding('encoding', encoding);
}

function textOf(encoding: unknown): Text {
  return encoding === 'buffer' ? encoding : encodingOf(encoding, 'utf8');
}

function modeOf(value: unknown): number | undefined {
  return value === undefined ? undefined : checkMode(value);
}

function flagOf<T extends string>(option: string, value: unknown, known: readonly T[]): T {
  if (!(known as readonly unknown[]).includes(value)) {
    throw wrongType(option, `one of ${known.join(', ')}`, value);
  }
  return value as T;
}

export function checkMode(value: unknown): number {
  return checkInteger('mode', value, { min: 0, max: MAX_MODE });
}

/** For methods that take no options of their own. */
export function checkSimple(method: string, value: FsOptions | undefined): { signal: Signal } {
  const { signal } = options<FsOptions>(method, value, []);
  return { signal };
}

export function checkNames(
  method: string,
  value: EncodingOptions | Text | null | undefined,
): { encoding: Text; signal: Signal } {
  const { encoding, signal } = options<EncodingOptions>(method, value, ['encoding']);
  return { encoding: textOf(encoding), signal };
}

export function checkReadFile(value: ReadFileOptions | BufferEncoding | null | undefined): {
  encoding: BufferEncoding | null;
  maxBytes: number;
  signal: Signal;
} {
  const known = ['encoding', 'maxBytes'] as const;
  const { encoding, signal, maxBytes } = options<ReadFileOptions>('readFile', value, known);
  return {
    encoding: encodingOf(encoding, null),
    maxBytes:
      maxBytes === undefined
        ? MAX_FILE_BYTES
        : checkInteger('maxBytes', maxBytes, { min: 0, max: MAX_FILE_BYTES }),
    signal,
  };
}

export interface CheckedWrite {
  readonly data: FileContents;
  readonly encoding: BufferEncoding;
  readonly mode: number | undefined;
  readonly flag: 'w' | 'wx' | 'a' | 'ax';
  readonly atomic: boolean;
  readonly signal: Signal;
}

function checkContents(data: unknown): asserts data is FileContents {
  if (typeof data === 'string' || ArrayBuffer.isView(data)) return;
  const isObject = typeof data === 'object' && data !== null;
  if (isObject && (Symbol.iterator in data || Symbol.asyncIterator in data)) return;
  throw new TypeError(
    `The data must be a string, a Buffer, a typed array or an iterable of them; got ${show(data)}`,
  );
}

export function checkWriteFile(
  data: FileContents,
  value: WriteFileOptions | BufferEncoding | null | undefined,
): CheckedWrite {
  checkContents(data);
  const known = ['encoding', 'mode', 'flag', 'atomic'] as const;
  const given = options<WriteFileOptions>('writeFile', value, known);
  const { encoding, mode, flag = 'w', atomic = false, signal } = given;
  flagOf('flag', flag, ['w', 'wx', 'a', 'ax']);
  checkBoolean('atomic', atomic);
  if (atomic && flag.startsWith('a')) {
    throw new TypeError(`Option "atomic" needs the flag 'w' or 'wx'; got ${show(flag)}`);
  }
  return {
    data,
    encoding: encodingOf(encoding, 'utf8'),
    mode: modeOf(mode),
    flag,
    atomic,
    signal,
  };
}

export function checkAppendFile(
  data: FileContents,
  value: AppendFileOptions | BufferEncoding | null | undefined,
): CheckedWrite {
  checkContents(data);
  const known = ['encoding', 'mode', 'flag'] as const;
  const given = options<AppendFileOptions>('appendFile', value, known);
  const { encoding, mode, flag = 'a', signal } = given;
  return {
    data,
    encoding: encodingOf(encoding, 'utf8'),
    mode: modeOf(mode),
    flag: flagOf('flag', flag, ['a', 'ax']),
    atomic: false,
    signal,
  };
}

export function highWaterMarkOf(value: unknown): number {
  if (value === undefined) return DEFAULT_HIGH_WATER_MARK;
  return checkInteger('highWaterMark', value, { min: 1, max: MAX_HIGH_WATER_MARK });
}

function offsetOf(option: string, value: unknown): number {
  return checkInteger(option, value, { min: 0, max: Number.MAX_SAFE_INTEGER });
}

export interface CheckedReadStream {
  readonly start: number | undefined;
  readonly byteCount: number | undefined;
  readonly encoding: BufferEncoding | null;
  readonly highWaterMark: number;
  readonly signal: Signal;
}

export function checkReadStream(
  value: ReadStreamOptions | BufferEncoding | null | undefined,
): CheckedReadStream {
  const known = ['start', 'end', 'highWaterMark', 'encoding'] as const;
  const given = options<ReadStreamOptions>('createReadStream', value, known);
  const { encoding, highWaterMark, signal } = given;
  const start = given.start === undefined ? undefined : offsetOf('start', given.start);
  let byteCount: number | undefined;
  if (given.end !== undefined && given.end !== Infinity) {
    const end = checkInteger('end', given.end, { min: 0, max: Number.MAX_SAFE_INTEGER - 1 });
    if (end < (start ?? 0)) {
      throw new RangeError(`Option "end" must not be less than "start"; got ${end}`);
    }
    byteCount = end - (start ?? 0) + 1;
  }
  return {
    start,
    byteCount,
    encoding: encodingOf(encoding, null),
    highWaterMark: highWaterMarkOf(highWaterMark),
    signal,
  };
}

export interface CheckedWriteStream {
  readonly flags: 'w' | 'wx' | 'a' | 'ax' | 'r+';
  readonly mode: number | undefined;
  readonly start: number | undefined;
  readonly encoding: BufferEncoding;
  readonly highWaterMark: number;
  readonly signal: Signal;
}

export function checkWriteStream(
  value: WriteStreamOptions | BufferEncoding | null | undefined,
): CheckedWriteStream {
  const known = ['flags', 'mode', 'start', 'encoding', 'highWaterMark'] as const;
  const given = options<WriteStreamOptions>('createWriteStream', value, known);
  const { flags = 'w', mode, start, encoding, highWaterMark, signal } = given;
  flagOf('flags', flags, ['w', 'wx', 'a', 'ax', 'r+']);
  if (start !== undefined && flags.startsWith('a')) {
    throw new TypeError(`Option "start" cannot be used with the flags '${flags}', which append`);
  }
  return {
    flags,
    mode: modeOf(mode),
    start: start === undefined ? undefined : offsetOf('start', start),
    encoding: encodingOf(encoding, 'utf8'),
    highWaterMark: highWaterMarkOf(highWaterMark),
    signal,
  };
}

export interface CheckedReaddir {
  readonly encoding: Text;
  readonly withFileTypes: boolean;
  readonly recursive: boolean;
  readonly signal: Signal;
}

export function checkReaddir(value: ReaddirOptions | Text | null | undefined): CheckedReaddir {
  const known = ['encoding', 'withFileTypes', 'recursive'] as const;
  const given = options<ReaddirOptions>('readdir', value, known);
  const { encoding, withFileTypes = false, recursive = false, signal } = given;
  return {
    encoding: textOf(encoding),
    withFileTypes: checkBoolean('withFileTypes', withFileTypes),
    recursive: checkBoolean('recursive', recursive),
    signal,
  };
}

export interface CheckedWatch {
  readonly encoding: Text;
  readonly recursive: boolean;
  readonly overflow: 'throw' | 'ignore';
  readonly signal: Signal;
}

export function checkWatch(value: WatchOptions | Text | null | undefined): CheckedWatch {
  const known = ['encoding', 'recursive', 'overflow'] as const;
  const given = options<WatchOptions>('watch', value, known);
  const { encoding, recursive = false, overflow = 'throw', signal } = given;
  return {
    encoding: textOf(encoding),
    recursive: checkBoolean('recursive', recursive),
    overflow: flagOf('overflow', overflow, ['throw', 'ignore']),
    signal,
  };
}

export interface CheckedDownload {
  readonly maxBytes: number;
  readonly maxEntries: number;
  readonly signal: Signal;
}

export function checkDownload(value: DownloadOptions | undefined): CheckedDownload {
  const known = ['maxBytes', 'maxEntries'] as const;
  const given = options<DownloadOptions>('download', value, known);
  const { maxBytes = MAX_TRANSFER_BYTES, maxEntries = MAX_TRANSFER_ENTRIES } = given;
  const max = Number.MAX_SAFE_INTEGER;
  return {
    maxBytes: checkInteger('maxBytes', maxBytes, { min: 0, max }),
    maxEntries: checkInteger('maxEntries', maxEntries, { min: 1, max }),
    signal: given.signal,
  };
}

export function checkMkdir(value: MkdirOptions | number | null | undefined): {
  recursive: boolean;
  mode: number | undefined;
  signal: Signal;
} {
  if (typeof value === 'number') {
    return { recursive: false, mode: checkMode(value), signal: undefined };
  }
  const given = options<MkdirOptions>('mkdir', value, ['recursive', 'mode']);
  const { recursive = false, mode, signal } = given;
  return {
    recursive: checkBoolean('recursive', recursive),
    mode: modeOf(mode),
    signal,
  };
}

export function checkRm(value: RmOptions | undefined): {
  recursive: boolean;
  force: boolean;
  signal: Signal;
} {
  const given = options<RmOptions>('rm', value, ['recursive', 'force']);
  const { recursive = false, force = false, signal } = given;
  return {
    recursive: checkBoolean('recursive', recursive),
    force: checkBoolean('force', force),
    signal,
  };
}

export function checkStat(
  method: string,
  value: StatOptions | undefined,
): { bigint: boolean; signal: Signal } {
  const { bigint = false, signal } = options<StatOptions>(method, value, ['bigint']);
  return { bigint: checkBoolean('bigint', bigint), signal };
}

/** What `access` asks for: `constants.F_OK`, or `R_OK`, `W_OK` and `X_OK` together. */
export function checkAccessMode(value: unknown): number {
  return checkInteger('mode', value, {
    min: 0,
    max: constants.R_OK | constants.W_OK | constants.X_OK,
  });
}

/**
 * How `copyFile` copies. A guest's file systems share no blocks between files: to prefer that is
 * to have a copy, and to insist on it is refused.
 */
export function checkCopyMode(value: unknown): { exclusive: boolean } {
  const { COPYFILE_EXCL, COPYFILE_FICLONE } = constants;
  const mode = checkInteger('mode', value, { min: 0, max: COPYFILE_EXCL | COPYFILE_FICLONE });
  return { exclusive: (mode & COPYFILE_EXCL) !== 0 };
}

/** A user or group; -1 leaves it as it is. */
export function checkId(option: string, value: unknown): number {
  const id = checkInteger(option, value, { min: -1, max: KEEP_ID - 1 });
  return id === -1 ? KEEP_ID : id;
}

export function checkLength(value: unknown): number {
  return checkInteger('len', value, { min: 0, max: Number.MAX_SAFE_INTEGER });
}

/** Nanoseconds since 1970. Seconds count to the microsecond, which is what a double is good for. */
export function checkTime(option: string, value: FileTime): bigint {
  const needed = 'a Date, or seconds since 1970';
  let ns: bigint;
  if (value instanceof Date) {
    const ms = value.getTime();
    if (Number.isNaN(ms)) throw new RangeError(`Option "${option}" is an invalid Date`);
    ns = BigInt(ms) * NS_PER_MS;
  } else {
    const isText = typeof value === 'string' && value.trim() !== '';
    const seconds: unknown = isText ? Number(value) : value;
    if (typeof seconds !== 'number' || (isText && Number.isNaN(seconds))) {
      throw wrongType(option, needed, value);
    }
    if (!Number.isFinite(seconds)) {
      throw new RangeError(`Option "${option}" must be ${needed}; got ${show(value)}`);
    }
    const whole = Math.floor(seconds);
    ns = BigInt(whole) * 1000n * NS_PER_MS + BigInt(Math.round((seconds - whole) * 1e6)) * 1000n;
  }
  if (ns > MAX_INT64 || ns < -MAX_INT64) {
    throw new RangeError(`Option "${option}" must be between the years 1678 and 2261`);
  }
  return ns;
}
