// What the methods of `vm.fs` take.

import type { FileChangeInfo } from 'node:fs/promises';

/** A path in the guest: a string, or bytes where it is not UTF-8. */
export type GuestPath = string | Uint8Array;

/** A path of the host: a string, or bytes where it is not UTF-8. Relative to the working directory. */
export type HostPath = string | Uint8Array;

/** What every method of `vm.fs` takes. */
export interface FsOptions {
  /**
   * Aborts the operation: it rejects with an `AbortError`, whose `cause` is the signal's reason, when
   * the guest has let go. What cannot be undone by then stays done.
   */
  readonly signal?: AbortSignal;
  /**
   * How long it may take from the call to its end, in milliseconds, 1 to 2^31 - 1; `ERR_VM_TIMEOUT`
   * beyond, in the same way. Of streams and watches that is all of their life.
   *
   * @defaultValue none: as long as the guest's agent answers
   */
  readonly timeoutMs?: number;
}

/** What methods take that return names. */
export interface EncodingOptions extends FsOptions {
  /** Encoding of names; `'buffer'` for Buffers. @defaultValue `'utf8'` */
  readonly encoding?: BufferEncoding | 'buffer' | null;
}

/** What `readFile` takes besides the path. */
export interface ReadFileOptions extends FsOptions {
  /** Encoding of the returned string; without it a Buffer is returned. */
  readonly encoding?: BufferEncoding | null;
  /**
   * Largest file that is read, in bytes, 0 to 2^31 - 1; a larger one is a RangeError with code
   * `ERR_FS_FILE_TOO_LARGE`. A guest decides how much a file yields, so set it where that matters.
   *
   * @defaultValue 2^31 - 1, which is node:fs's own limit
   */
  readonly maxBytes?: number;
}

/** What `writeFile` takes besides the path and the data. */
export interface WriteFileOptions extends FsOptions {
  /** Encoding of strings. @defaultValue `'utf8'` */
  readonly encoding?: BufferEncoding | null;
  /** Permission bits of a file that is created. @defaultValue 0o666, less the guest's umask 022 */
  readonly mode?: number;
  /** `'w'` truncates, `'a'` appends; with an `x` the file must not exist. @defaultValue `'w'` */
  readonly flag?: 'w' | 'wx' | 'a' | 'ax';
  /**
   * Whether the file is there either as it was or complete: the data goes into a hidden file in the
   * same directory, which is written through and takes the place of the file at the end. A failure or
   * an abort leaves nothing. Mode and owner of a file that is replaced stay; a symbolic link is
   * followed. Only with the flags `'w'` and `'wx'`, and for regular files.
   *
   * @defaultValue `false`: what was written before a failure or an abort stays
   */
  readonly atomic?: boolean;
}

/** What `appendFile` takes besides the path and the data. */
export interface AppendFileOptions extends FsOptions {
  /** Encoding of strings. @defaultValue `'utf8'` */
  readonly encoding?: BufferEncoding | null;
  /** Permission bits of a file that is created. @defaultValue 0o666, less the guest's umask 022 */
  readonly mode?: number;
  /** With `'ax'` the file must not exist. @defaultValue `'a'` */
  readonly flag?: 'a' | 'ax';
}

/** What `writeFile` and `appendFile` write. */
export type FileContents =
  | string
  | NodeJS.ArrayBufferView
  | Iterable<string | NodeJS.ArrayBufferView>
  | AsyncIterable<string | NodeJS.ArrayBufferView>;

/** What `createReadStream` takes besides the path. */
export interface ReadStreamOptions extends FsOptions {
  /** Offset of the first byte. @defaultValue 0 */
  readonly start?: number;
  /** Offset of the last byte, which is read as well. @defaultValue `Infinity`: to the end */
  readonly end?: number;
  /** Bytes that are fetched ahead of the reader, 1 to 2^30. @defaultValue 64 KiB */
  readonly highWaterMark?: number;
  /** Encoding of chunks, which then are strings. @defaultValue none: Buffers */
  readonly encoding?: BufferEncoding | null;
}

/** What `createWriteStream` takes besides the path. */
export interface WriteStreamOptions extends FsOptions {
  /**
   * `'w'` truncates, `'a'` appends, with an `x` the file must not exist; `'r+'` writes over what is
   * there, and the file must exist.
   *
   * @defaultValue `'w'`
   */
  readonly flags?: 'w' | 'wx' | 'a' | 'ax' | 'r+';
  /** Permission bits of a file that is created. @defaultValue 0o666, less the guest's umask 022 */
  readonly mode?: number;
  /** Offset of the first byte; not with `'a'`. @defaultValue 0 */
  readonly start?: number;
  /** Encoding of strings. @defaultValue `'utf8'` */
  readonly encoding?: BufferEncoding | null;
  /** Bytes beyond which `write()` returns false, 1 to 2^30. @defaultValue 64 KiB */
  readonly highWaterMark?: number;
}

/** What `mkdir` takes besides the path. */
export interface MkdirOptions extends FsOptions {
  /** Creates missing parents, and takes an existing directory. @defaultValue `false` */
  readonly recursive?: boolean;
  /** Permission bits. @defaultValue 0o777, less the guest's umask 022 */
  readonly mode?: number;
}

/** What `rm` takes besides the path. */
export interface RmOptions extends FsOptions {
  /** Removes directories with everything in them. @defaultValue `false` */
  readonly recursive?: boolean;
  /** Whether a missing path is no error. @defaultValue `false` */
  readonly force?: boolean;
}

/** What `stat` and `lstat` take besides the path. */
export interface StatOptions extends FsOptions {
  /** Whether numbers are bigints. @defaultValue `false` */
  readonly bigint?: boolean;
}

/** What `readdir` takes besides the path. */
export interface ReaddirOptions extends EncodingOptions {
  /** Whether entries are `Dirent`s instead of names. @defaultValue `false` */
  readonly withFileTypes?: boolean;
  /**
   * Whether directories below are listed as well. Names are paths below the directory then; `Dirent`s
   * have a `parentPath` each. Symbolic links are not followed.
   *
   * @defaultValue `false`
   */
  readonly recursive?: boolean;
}

/** A time as `utimes` takes it: a Date, or seconds since 1970 as a number or its text. */
export type FileTime = number | string | Date;

/** What `watch` takes besides the path. */
export interface WatchOptions extends EncodingOptions {
  /** Whether directories below are watched too, new ones as well. @defaultValue `false` */
  readonly recursive?: boolean;
  /**
   * What happens when changes come faster than they are taken, and the guest has dropped some: an
   * error with code `ERR_FS_WATCH_QUEUE_OVERFLOW` ends the loop, or it goes on without them.
   *
   * @defaultValue `'throw'`
   */
  readonly overflow?: 'throw' | 'ignore';
}

/**
 * Changes of files, for a `for await` loop. It watches from the call on; leaving the loop, or
 * `return()`, ends it.
 */
export interface FileWatcher<Name extends string | Buffer = string>
  extends AsyncIterable<FileChangeInfo<Name>>,
    AsyncDisposable {
  /**
   * Resolves when everything that was there is watched, which for a large tree takes a while: later
   * changes are not missed. Rejects if it does not come to that, and may be left alone.
   */
  readonly ready: Promise<void>;
  next(): Promise<IteratorResult<FileChangeInfo<Name>, undefined>>;
  return(): Promise<IteratorResult<FileChangeInfo<Name>, undefined>>;
  [Symbol.asyncIterator](): this;
}

/** What `download` takes besides the paths. */
export interface DownloadOptions extends FsOptions {
  /**
   * Most bytes that all files together may have, 0 to 2^53 - 1; `ERR_VM_MAX_TRANSFER` beyond. Files
   * count in full, with their holes, symbolic links with what they say, and both before they are made.
   *
   * @defaultValue 4 GiB: a guest keeps its files in its memory, and few have more of that, so that what
   *   is larger is a file with holes, or a guest that fills the host's disk
   */
  readonly maxBytes?: number;
  /**
   * Most files, directories, symbolic links and hard links together, 1 to 2^53 - 1;
   * `ERR_VM_MAX_TRANSFER` beyond.
   *
   * @defaultValue 1,000,000: more than a source tree with its dependencies has, and less than the inodes
   *   of a small disk
   */
  readonly maxEntries?: number;
}

/** What an `upload` or a `download` has made. */
export interface TransferSummary {
  /** Regular files; one with several names counts once. */
  readonly files: number;
  /** Directories, with the top and those that were there before. */
  readonly directories: number;
  readonly symlinks: number;
  /** Further names of files: hard links. */
  readonly links: number;
  /** Sizes of all files together, with their holes. */
  readonly bytes: number;
  /** Devices, FIFOs and sockets that a download has left out; an upload refuses them. */
  readonly skipped: number;
}
