import type { BigIntStats, Dirent, Stats } from 'node:fs';
import type { Readable, Writable } from 'node:stream';

import type {
  AppendFileOptions,
  DownloadOptions,
  EncodingOptions,
  FileContents,
  FileTime,
  FileWatcher,
  FsOptions,
  GuestPath,
  HostPath,
  MkdirOptions,
  ReaddirOptions,
  ReadFileOptions,
  ReadStreamOptions,
  RmOptions,
  StatOptions,
  TransferSummary,
  WatchOptions,
  WriteFileOptions,
  WriteStreamOptions,
} from './guest-fs-options.js';
import { changeOwner, changeTimes, describe, makeTemporary } from './internal/fs/attributes.js';
import { readWhole, writeWhole } from './internal/fs/contents.js';
import { listDirectory } from './internal/fs/list.js';
import {
  checkAccessMode,
  checkAppendFile,
  checkCopyMode,
  checkDownload,
  checkLength,
  checkMkdir,
  checkMode,
  checkNames,
  checkReaddir,
  checkReadFile,
  checkReadStream,
  checkRm,
  checkSimple,
  checkWatch,
  checkWriteFile,
  checkWriteStream,
} from './internal/fs/options.js';
import { checkPath } from './internal/fs/paths.js';
import { Errno, request, requestPath, requestTwoPaths } from './internal/fs/request.js';
import { FileReadable, FileWritable } from './internal/fs/streams.js';
import { Watcher } from './internal/fs/watch.js';
import {
  encodeAccess,
  encodeChmod,
  encodeCopyFile,
  encodeLink,
  encodeMkdir,
  encodeReadlink,
  encodeRealpath,
  encodeRemove,
  encodeRename,
  encodeSymlink,
  encodeTruncate,
} from './internal/protocol/protocol.js';
import { downloadTree, uploadTree } from './internal/trees/trees.js';
import type { Guest } from './internal/vm/guest.js';

export type * from './guest-fs-options.js';

type Text = EncodingOptions & { encoding?: BufferEncoding | null };
type Bytes = 'buffer' | (EncodingOptions & { encoding: 'buffer' });

/**
 * Files of the guest, as `node:fs/promises` has them for the host's.
 *
 * Paths are the guest's: absolute, or relative to `/`; a Uint8Array for names that are not UTF-8.
 * Failures of a file are `NodeJS.ErrnoException`s with `code` (`'ENOENT'`), negative `errno`,
 * `syscall` and `path`, and `dest` where there are two paths. Failures of the VM are
 * {@link VmError}s: `ERR_VM_EXITED`, `ERR_VM_CLOSED`, `ERR_VM_RESET`, `ERR_VM_PAUSED`,
 * `ERR_VM_AGENT_UNRESPONSIVE`, `ERR_VM_AGENT_PROTOCOL`. Wrong arguments are TypeErrors and
 * RangeErrors that name the option. Every method takes a `signal` and a `timeoutMs`, see
 * {@link FsOptions}.
 *
 * The guest's agent is root: permissions stop it only where they stop root.
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
    const { encoding, ...checked } = checkReadFile(options);
    const bytes = await readWhole(this.#guest, checkPath(path), checked);
    return encoding === null ? bytes : bytes.toString(encoding);
  }

  /**
   * Writes a file, and creates it if need be. Streams and other iterables are read as fast as the
   * guest writes. With `atomic` the file is never there in part.
   */
  async writeFile(
    path: GuestPath,
    data: FileContents,
    options?: WriteFileOptions | BufferEncoding | null,
  ): Promise<void> {
    const checked = checkWriteFile(data, options);
    await writeWhole(this.#guest, 'writeFile', checkPath(path), checked);
  }

  /** Appends to a file, and creates it if need be. */
  async appendFile(
    path: GuestPath,
    data: FileContents,
    options?: AppendFileOptions | BufferEncoding | null,
  ): Promise<void> {
    const checked = checkAppendFile(data, options);
    await writeWhole(this.#guest, 'appendFile', checkPath(path), checked);
  }

  /**
   * Copies a regular file inside the guest, with its mode. A copy that fails or is aborted is
   * removed, unless it was there before.
   *
   * @param mode - `fs.constants.COPYFILE_EXCL`: fails with `EEXIST` if there is one already.
   */
  async copyFile(
    source: GuestPath,
    destination: GuestPath,
    mode = 0,
    options?: FsOptions,
  ): Promise<void> {
    const { exclusive } = checkCopyMode(mode);
    const { signal } = checkSimple('copyFile', options);
    await requestTwoPaths(this.#guest, source, destination, {
      method: 'copyFile',
      syscall: 'copyfile',
      rest: { mode },
      signal,
      encode: (id, from, to) => encodeCopyFile(id, from, to, { exclusive }),
    });
  }

  /**
   * Reads a file, or a part of it, as a stream. The guest reads ahead by `highWaterMark` and waits
   * for the reader then. As with node:fs, a failure without an `error` listener is an uncaught
   * exception. Destroying the stream ends the reading; `close` follows when the guest has let go.
   */
  createReadStream(path: GuestPath, options?: ReadStreamOptions | BufferEncoding | null): Readable {
    const checked = checkReadStream(options);
    return new FileReadable(this.#guest, checkPath(path), checked);
  }

  /**
   * Writes a file as a stream. Writes wait for the guest when it is slower, and `finish` comes when
   * it has written everything. Destroying the stream leaves what was written by then.
   */
  createWriteStream(
    path: GuestPath,
    options?: WriteStreamOptions | BufferEncoding | null,
  ): Writable {
    const checked = checkWriteStream(options);
    return new FileWritable(this.#guest, checkPath(path), checked);
  }

  /**
   * Lists a directory, without `.` and `..`, in no particular order. Names may take 8 MiB;
   * `ERR_VM_MAX_OUTPUT` beyond.
   */
  readdir(
    path: GuestPath,
    options: 'buffer' | (ReaddirOptions & { encoding: 'buffer'; withFileTypes?: false }),
  ): Promise<Buffer[]>;
  readdir(
    path: GuestPath,
    options: ReaddirOptions & { encoding: 'buffer'; withFileTypes: true },
  ): Promise<Dirent<Buffer>[]>;
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
  ): Promise<(string | Buffer)[] | Dirent<string | Buffer>[]> {
    const checked = checkReaddir(options);
    return await listDirectory(this.#guest, checkPath(path), checked);
  }

  /** Describes a file; symbolic links are followed. */
  stat(path: GuestPath, options: StatOptions & { bigint: true }): Promise<BigIntStats>;
  stat(path: GuestPath, options?: StatOptions & { bigint?: false }): Promise<Stats>;
  stat(path: GuestPath, options?: StatOptions): Promise<Stats | BigIntStats>;
  async stat(path: GuestPath, options?: StatOptions): Promise<Stats | BigIntStats> {
    return await describe(this.#guest, 'stat', path, options);
  }

  /** Describes a file; a symbolic link is described itself. */
  lstat(path: GuestPath, options: StatOptions & { bigint: true }): Promise<BigIntStats>;
  lstat(path: GuestPath, options?: StatOptions & { bigint?: false }): Promise<Stats>;
  lstat(path: GuestPath, options?: StatOptions): Promise<Stats | BigIntStats>;
  async lstat(path: GuestPath, options?: StatOptions): Promise<Stats | BigIntStats> {
    return await describe(this.#guest, 'lstat', path, options);
  }

  /**
   * Rejects unless the guest's root may do that with a file: `EACCES` for executing what nobody may,
   * `EROFS` for writing to a read-only file system.
   *
   * @param mode - `fs.constants.F_OK`, or `R_OK`, `W_OK` and `X_OK` together.
   */
  async access(path: GuestPath, mode = 0, options?: FsOptions): Promise<void> {
    checkAccessMode(mode);
    const { signal } = checkSimple('access', options);
    await request(this.#guest, path, {
      method: 'access',
      rest: { mode },
      signal,
      encode: (id, checked) => encodeAccess(id, checked, mode),
    });
  }

  /** The path without symbolic links, `.` and `..`. */
  realpath(path: GuestPath, options: Bytes): Promise<Buffer>;
  realpath(path: GuestPath, options?: Text | BufferEncoding | null): Promise<string>;
  async realpath(
    path: GuestPath,
    options?: EncodingOptions | BufferEncoding | 'buffer' | null,
  ): Promise<string | Buffer> {
    const checked = checkNames('realpath', options);
    return await requestPath(this.#guest, 'realpath', path, encodeRealpath, checked);
  }

  /** What a symbolic link says. */
  readlink(path: GuestPath, options: Bytes): Promise<Buffer>;
  readlink(path: GuestPath, options?: Text | BufferEncoding | null): Promise<string>;
  async readlink(
    path: GuestPath,
    options?: EncodingOptions | BufferEncoding | 'buffer' | null,
  ): Promise<string | Buffer> {
    const checked = checkNames('readlink', options);
    return await requestPath(this.#guest, 'readlink', path, encodeReadlink, checked);
  }

  /** Creates a directory. Unlike node:fs's, it does not say which parents it created. */
  async mkdir(path: GuestPath, options?: MkdirOptions | number | null): Promise<void> {
    const { recursive, mode, signal } = checkMkdir(options);
    await request(this.#guest, path, {
      method: 'mkdir',
      rest: { recursive, mode },
      signal,
      encode: (id, checked) =>
        encodeMkdir(id, checked, { recursive, ...(mode !== undefined && { mode }) }),
    });
  }

  /** Creates a directory whose name is `prefix` and six random characters; only root may enter it. */
  mkdtemp(prefix: GuestPath, options: Bytes): Promise<Buffer>;
  mkdtemp(prefix: GuestPath, options?: Text | BufferEncoding | null): Promise<string>;
  async mkdtemp(
    prefix: GuestPath,
    options?: EncodingOptions | BufferEncoding | 'buffer' | null,
  ): Promise<string | Buffer> {
    return await makeTemporary(this.#guest, prefix, checkNames('mkdtemp', options));
  }

  /**
   * Removes a file, or with `recursive` a directory. A directory without `recursive` is
   * `ERR_FS_EISDIR`, as in node:fs.
   */
  async rm(path: GuestPath, options?: RmOptions): Promise<void> {
    const { recursive, force, signal } = checkRm(options);
    await request(this.#guest, path, {
      method: 'rm',
      rest: { recursive, force },
      signal,
      encode: (id, checked) => encodeRemove(id, checked, { recursive, force }),
      refine: (error, errno) => {
        if (errno === Errno.EISDIR && !recursive) error.code = 'ERR_FS_EISDIR';
      },
    });
  }

  /** Moves a file or a directory inside its file system, over what is there; else `EXDEV`. */
  async rename(from: GuestPath, to: GuestPath, options?: FsOptions): Promise<void> {
    const { signal } = checkSimple('rename', options);
    const call = { method: 'rename', signal, encode: encodeRename };
    await requestTwoPaths(this.#guest, from, to, call);
  }

  /** Sets permission bits, 0 to 0o7777. */
  async chmod(path: GuestPath, mode: number, options?: FsOptions): Promise<void> {
    checkMode(mode);
    const { signal } = checkSimple('chmod', options);
    await request(this.#guest, path, {
      method: 'chmod',
      rest: { mode },
      signal,
      encode: (id, checked) => encodeChmod(id, checked, mode),
    });
  }

  /** Sets owner and group; -1 leaves one as it is. */
  async chown(path: GuestPath, uid: number, gid: number, options?: FsOptions): Promise<void> {
    await changeOwner(this.#guest, 'chown', path, uid, gid, options);
  }

  /** Like `chown`, for a symbolic link itself. */
  async lchown(path: GuestPath, uid: number, gid: number, options?: FsOptions): Promise<void> {
    await changeOwner(this.#guest, 'lchown', path, uid, gid, options);
  }

  /** Gives a file a second name. */
  async link(existingPath: GuestPath, newPath: GuestPath, options?: FsOptions): Promise<void> {
    const { signal } = checkSimple('link', options);
    const call = { method: 'link', signal, encode: encodeLink };
    await requestTwoPaths(this.#guest, existingPath, newPath, call);
  }

  /** Creates a symbolic link at `path` that says `target`. */
  async symlink(target: GuestPath, path: GuestPath, options?: FsOptions): Promise<void> {
    const { signal } = checkSimple('symlink', options);
    const call = { method: 'symlink', signal, encode: encodeSymlink };
    await requestTwoPaths(this.#guest, target, path, call);
  }

  /** Sets the times of access and modification, to the millisecond or microsecond. */
  async utimes(
    path: GuestPath,
    atime: FileTime,
    mtime: FileTime,
    options?: FsOptions,
  ): Promise<void> {
    await changeTimes(this.#guest, 'utimes', path, atime, mtime, options);
  }

  /** Like `utimes`, for a symbolic link itself. */
  async lutimes(
    path: GuestPath,
    atime: FileTime,
    mtime: FileTime,
    options?: FsOptions,
  ): Promise<void> {
    await changeTimes(this.#guest, 'lutimes', path, atime, mtime, options);
  }

  /** Cuts a file off at `len` bytes, or extends it with zeros. */
  async truncate(path: GuestPath, len = 0, options?: FsOptions): Promise<void> {
    checkLength(len);
    const { signal } = checkSimple('truncate', options);
    await request(this.#guest, path, {
      method: 'truncate',
      // node:fs opens the file first, and most of what can fail is that.
      syscall: 'open',
      rest: { len },
      signal,
      encode: (id, checked) => encodeTruncate(id, checked, len),
    });
  }

  /**
   * Watches a file, a directory, or with `recursive` a tree: yields `{ eventType, filename }`,
   * `'rename'` for what has come or gone, and `'change'` for contents or attributes. `filename` is
   * below the directory; changes of what is watched itself have its base name. Symbolic links below
   * are not followed.
   *
   * It watches from the call on, and holds the event loop until it is ended: leave the loop, or abort
   * `signal`, which throws an `AbortError`, as the end of `timeoutMs` throws `ERR_VM_TIMEOUT`. When what is watched is removed or renamed, the loop ends.
   * Otherwise it throws what ended it: a file's error (`ENOENT`; `ENOSPC` for more directories than
   * the guest can watch, `EMFILE` for more watches), the VM's, or that changes were lost, see
   * {@link WatchOptions}.
   */
  watch(
    path: GuestPath,
    options: 'buffer' | (WatchOptions & { encoding: 'buffer' }),
  ): FileWatcher<Buffer>;
  watch(
    path: GuestPath,
    options?: (WatchOptions & { encoding?: BufferEncoding | null }) | BufferEncoding | null,
  ): FileWatcher;
  watch(
    path: GuestPath,
    options?: WatchOptions | BufferEncoding | 'buffer' | null,
  ): FileWatcher<string | Buffer> {
    const checked = checkWatch(options);
    return new Watcher(this.#guest, checkPath(path), checked);
  }

  /**
   * Copies a file or a directory with everything in it from the host into the guest, as `cp -rT`
   * does: it becomes `guestPath` itself, whose parent must be there, or is merged into the directory
   * that `guestPath` is. One operation, whatever the number of files.
   *
   * Modes, times, symbolic links as they are, hard links within the tree, holes and names of any bytes
   * are carried. Owners are not: everything is root's. Nor are setuid and setgid. A directory that was
   * there keeps its mode. Files, symbolic links and hard links take the place of what is there; a
   * directory does not take that of anything else (`ENOTDIR`), nor anything else that of a directory
   * (`EISDIR`).
   *
   * `hostPath` is followed if it is a symbolic link; nothing below it is, and nothing in the guest from
   * `guestPath` on, unless that ends with a slash. A device, FIFO or socket is refused with `EINVAL`. A
   * failure or an abort leaves what is complete by then; errors name the file, of the host or of the
   * guest, that they are about.
   *
   * @throws {VmError} `ERR_VM_TIMEOUT`: it took longer than `timeoutMs`.
   */
  async upload(
    hostPath: HostPath,
    guestPath: GuestPath,
    options?: FsOptions,
  ): Promise<TransferSummary> {
    const { signal } = checkSimple('upload', options);
    const from = checkPath(hostPath, 'hostPath');
    return await uploadTree(this.#guest, from, checkPath(guestPath, 'guestPath'), signal);
  }

  /**
   * Copies a file or a directory with everything in it from the guest to the host, as `cp -rT` does;
   * see {@link GuestFs.upload}, of which it is the reverse. Everything is this process's user's, and
   * times are set to the microsecond. Devices, FIFOs and sockets are left out and counted.
   *
   * Nothing is written, changed or followed outside of `hostPath`, whatever the guest sends and
   * whatever is there already. What the guest sends stays the guest's, though: symbolic links may lead
   * anywhere, and files have the modes that the guest gave them.
   *
   * @throws {VmError} `ERR_VM_MAX_TRANSFER`: it has more than `maxBytes` or `maxEntries`.
   *   `ERR_VM_TIMEOUT`: it took longer than `timeoutMs`. `ERR_VM_AGENT_PROTOCOL`: what the guest sent
   *   is no tree. What was written by then stays.
   */
  async download(
    guestPath: GuestPath,
    hostPath: HostPath,
    options?: DownloadOptions,
  ): Promise<TransferSummary> {
    const checked = checkDownload(options);
    const from = checkPath(guestPath, 'guestPath');
    return await downloadTree(this.#guest, from, checkPath(hostPath, 'hostPath'), checked);
  }
}
