// Where a transfer is in a tree of the host.
//
// Node has no openat(2), but the kernel resolves /proc/self/fd/N/name from an opened directory on,
// whatever becomes of its path. So entries are reached by a descriptor and one name, and a symbolic
// link that somebody puts in the way is never on the way.

import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

import { guestFileError } from '../../errors.js';

/** O_DIRECTORY fails on a link with ENOTDIR; O_NONBLOCK is for a FIFO that is in the place. */
export const OPEN_DIRECTORY =
  constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

const SLASH = Buffer.from('/');
const ENOENT = 2;

interface Identity {
  readonly dev: bigint;
  readonly ino: bigint;
}

interface Step<T> extends Identity {
  readonly pathBytes: number;
  readonly data: T;
}

/** One directory is open, however deep it is; `T` is what the caller keeps for each above it. */
export class HostTrail<T> {
  /** Of the top, in the caller's words */
  readonly #top: Buffer;
  readonly #steps: Step<T>[] = [];
  #directory: FileHandle | undefined;
  #identity: Identity = { dev: 0n, ino: 0n };
  /** The directory's path below the top */
  #path: Buffer = Buffer.alloc(0);

  constructor(top: Buffer) {
    this.#top = top;
  }

  /** 0 above the tree. */
  get depth(): number {
    return this.#steps.length;
  }

  /** Of the directory that is open. */
  get data(): T {
    const step = this.#steps.at(-1);
    if (step === undefined) throw new Error('No directory is open');
    return step.data;
  }

  /** The path of an entry below the top. */
  below(name: Buffer): Buffer {
    return this.#path.length === 0 || name.length === 0
      ? Buffer.concat([this.#path, name])
      : Buffer.concat([this.#path, SLASH, name]);
  }

  /** How the kernel reaches an entry of the directory. */
  reach(name: Buffer): Buffer {
    return this.#directory === undefined ? this.#top : reachFrom(this.#directory, name);
  }

  /** Runs a call; its error has the path that the caller knows, instead of ours. */
  async named<R>(name: Buffer, call: () => Promise<R>): Promise<R> {
    try {
      return await call();
    } catch (error) {
      throw this.rename(error, name);
    }
  }

  rename(error: unknown, name: Buffer): unknown {
    if (!(error instanceof Error) || !('errno' in error)) return error;
    const { errno = 0, syscall = 'open' } = error as NodeJS.ErrnoException;
    return this.failure(-errno, syscall, name);
  }

  failure(errno: number, syscall: string, name: Buffer): NodeJS.ErrnoException {
    const below = this.below(name);
    const path = below.length === 0 ? this.#top : Buffer.concat([this.#top, SLASH, below]);
    return guestFileError(errno, syscall, path.toString());
  }

  /** Opens a directory that is an entry of this one, and nothing that a link leads to. */
  openDirectory(name: Buffer): Promise<FileHandle> {
    return open(this.reach(name), OPEN_DIRECTORY);
  }

  /** Goes into an entry that was opened, which is the trail's from here on. */
  async enter(name: Buffer, handle: FileHandle, data: T): Promise<void> {
    const above = this.#directory;
    const path = this.below(name);
    this.#steps.push({ ...this.#identity, pathBytes: this.#path.length, data });
    this.#directory = handle;
    this.#path = path;
    await above?.close();
    const { dev, ino } = await handle.stat({ bigint: true });
    this.#identity = { dev, ino };
  }

  /** Goes back up. The directory that was left is the caller's to close. */
  async leave(): Promise<{ left: FileHandle; data: T }> {
    const step = this.#steps.at(-1);
    const left = this.#directory;
    if (step === undefined || left === undefined) throw new Error('There is nothing above');
    const above = this.depth > 1 ? await this.#openAbove(left, step) : undefined;
    this.#steps.pop();
    this.#directory = above;
    this.#identity = step;
    this.#path = this.#path.subarray(0, step.pathBytes);
    return { left, data: step.data };
  }

  async #openAbove(left: FileHandle, { dev, ino }: Identity): Promise<FileHandle> {
    const above = await open(reachFrom(left, Buffer.from('..')), OPEN_DIRECTORY);
    const status = await above.stat({ bigint: true });
    if (status.dev === dev && status.ino === ino) return above;
    await above.close();
    // Somebody has moved the directory, and its parent is none of ours.
    throw this.failure(ENOENT, 'open', Buffer.alloc(0));
  }

  async close(): Promise<void> {
    const directory = this.#directory;
    this.#directory = undefined;
    await directory?.close();
  }
}

/** An entry of an opened directory. */
export function reachFrom(directory: FileHandle, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`/proc/self/fd/${directory.fd}/`), name]);
}

/** Whether a call failed with that code. */
export function failedWith(error: unknown, code: string): boolean {
  return error instanceof Error && (error as NodeJS.ErrnoException).code === code;
}
