// Checks of the arguments of `vm.fs`.

import type {
  FileContents,
  MkdirOptions,
  ReaddirOptions,
  ReadFileOptions,
  RmOptions,
  StatOptions,
  WriteFileOptions,
} from '../guest-fs.js';
import {
  checkBoolean,
  checkEncoding,
  checkInteger,
  checkOptions,
  checkSignal,
  show,
  wrongType,
} from './validate.js';

/** A path in the guest: a string, or bytes where it is not UTF-8. */
export type GuestPath = string | Uint8Array;

/** What Linux takes as a path, in bytes with the NUL at its end. */
const PATH_MAX = 4096;

/** node:fs's limit of what `readFile` returns, in bytes. */
const MAX_FILE_BYTES = 2 ** 31 - 1;

const MAX_MODE = 0o7777;

const EMPTY = {} as const;

export function pathText(path: GuestPath): string {
  return typeof path === 'string' ? path : Buffer.from(path).toString('utf8');
}

export function checkPath(path: unknown): asserts path is GuestPath {
  if (typeof path !== 'string' && !(path instanceof Uint8Array)) {
    throw new TypeError(`The path must be a string or a Uint8Array; got ${show(path)}`);
  }
  const hasNul = typeof path === 'string' ? path.includes('\0') : path.includes(0);
  if (hasNul) throw new TypeError(`The path must not contain NUL; got ${show(path)}`);
  // Longer ones are the guest's to refuse, as long as they fit into a request.
  const bytes = typeof path === 'string' ? Buffer.byteLength(path) : path.length;
  if (bytes > 8 * PATH_MAX) {
    throw new RangeError(`The path must have less than ${PATH_MAX} bytes; got ${bytes}`);
  }
}

function options<T extends object>(
  where: string,
  value: T | string | null | undefined,
  known: readonly (keyof T & string)[],
): Partial<T> & { encoding?: unknown } {
  if (value === null) return EMPTY as Partial<T>;
  if (typeof value === 'string') return { encoding: value } as Partial<T> & { encoding: string };
  return checkOptions(where, value, known);
}

function checkMode(value: unknown): number | undefined {
  return value === undefined ? undefined : checkInteger('mode', value, { min: 0, max: MAX_MODE });
}

export function checkReadFile(
  path: GuestPath,
  value: ReadFileOptions | BufferEncoding | null | undefined,
): { encoding: BufferEncoding | null; maxBytes: number; signal: AbortSignal | undefined } {
  checkPath(path);
  const given = options<ReadFileOptions>('vm.fs.readFile()', value, [
    'encoding',
    'signal',
    'maxBytes',
  ]);
  const { encoding, signal, maxBytes } = given;
  return {
    encoding:
      encoding === undefined || encoding === null ? null : checkEncoding('encoding', encoding),
    maxBytes:
      maxBytes === undefined
        ? MAX_FILE_BYTES
        : checkInteger('maxBytes', maxBytes, { min: 0, max: MAX_FILE_BYTES }),
    signal: signal === undefined ? undefined : checkSignal('signal', signal),
  };
}

export interface CheckedWrite {
  readonly data: FileContents;
  readonly encoding: BufferEncoding;
  readonly mode: number | undefined;
  readonly flag: 'w' | 'wx' | 'a' | 'ax';
  readonly signal: AbortSignal | undefined;
}

const FLAGS = ['w', 'wx', 'a', 'ax'] as const;

function isContents(data: unknown): data is FileContents {
  if (typeof data === 'string' || ArrayBuffer.isView(data)) return true;
  if (typeof data !== 'object' || data === null) return false;
  return Symbol.iterator in data || Symbol.asyncIterator in data;
}

export function checkWriteFile(
  path: GuestPath,
  data: FileContents,
  value: WriteFileOptions | BufferEncoding | null | undefined,
): CheckedWrite {
  checkPath(path);
  if (!isContents(data)) {
    throw new TypeError(
      `The data must be a string, a Buffer, a typed array or an iterable of them; got ${show(data)}`,
    );
  }
  const given = options<WriteFileOptions>('vm.fs.writeFile()', value, [
    'encoding',
    'mode',
    'flag',
    'signal',
  ]);
  const { encoding, mode, flag = 'w', signal } = given;
  if (!FLAGS.includes(flag)) throw wrongType('flag', `one of ${FLAGS.join(', ')}`, flag);
  return {
    data,
    encoding:
      encoding === undefined || encoding === null ? 'utf8' : checkEncoding('encoding', encoding),
    mode: checkMode(mode),
    flag,
    signal: signal === undefined ? undefined : checkSignal('signal', signal),
  };
}

export function checkReaddir(
  path: GuestPath,
  value: ReaddirOptions | BufferEncoding | 'buffer' | null | undefined,
): { encoding: BufferEncoding | 'buffer'; withFileTypes: boolean } {
  checkPath(path);
  const given = options<ReaddirOptions>('vm.fs.readdir()', value, ['encoding', 'withFileTypes']);
  const { encoding, withFileTypes = false } = given;
  checkBoolean('withFileTypes', withFileTypes);
  if (encoding === 'buffer' && withFileTypes) {
    throw new TypeError('Option "encoding" must be a text encoding with withFileTypes');
  }
  const text = encoding === undefined || encoding === null ? 'utf8' : encoding;
  return {
    encoding: text === 'buffer' ? text : checkEncoding('encoding', text),
    withFileTypes,
  };
}

export function checkMkdir(
  path: GuestPath,
  value: MkdirOptions | number | null | undefined,
): { recursive: boolean; mode: number | undefined } {
  checkPath(path);
  if (typeof value === 'number') return { recursive: false, mode: checkMode(value) };
  const given = options<MkdirOptions>('vm.fs.mkdir()', value, ['recursive', 'mode']);
  const { recursive = false, mode } = given;
  return { recursive: checkBoolean('recursive', recursive), mode: checkMode(mode) };
}

export function checkRm(
  path: GuestPath,
  value: RmOptions | undefined,
): { recursive: boolean; force: boolean } {
  checkPath(path);
  const given = checkOptions<RmOptions>('vm.fs.rm()', value, ['recursive', 'force']);
  const { recursive = false, force = false } = given;
  return { recursive: checkBoolean('recursive', recursive), force: checkBoolean('force', force) };
}

export function checkStat(
  where: string,
  path: GuestPath,
  value: StatOptions | undefined,
): { bigint: boolean } {
  checkPath(path);
  const { bigint = false } = checkOptions<StatOptions>(where, value, ['bigint']);
  return { bigint: checkBoolean('bigint', bigint) };
}
