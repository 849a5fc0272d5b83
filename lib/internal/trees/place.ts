// Making the entries of a tree that comes from a guest, in a directory of the host.
//
// The guest is hostile, and so may be what an earlier download has left in the directory. Whatever
// the entries are: they are made in a directory that is held open, by one name that has been checked,
// and nothing that is there is ever written through, followed or changed, only replaced.

import { constants } from 'node:fs';
import {
  type FileHandle,
  link,
  lstat,
  lutimes,
  mkdir,
  open,
  symlink,
  unlink,
} from 'node:fs/promises';
import { ProtocolError, type TreeEntry } from '../protocol/protocol.js';
import { failedWith, HostTrail, OPEN_DIRECTORY, reachFrom } from './host-trail.js';

const CREATE_FILE =
  constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;

/** Until they are complete, nobody else reads files, and directories can be filled. */
const UNFINISHED_FILE_MODE = 0o600;
const UNFINISHED_DIRECTORY_MODE = 0o700;

/** Small files that are made at once; Node has four threads for that. */
const AT_ONCE = 8;

const SLASH = 0x2f;
const NO_NAME = Buffer.alloc(0);

type Attributes = Pick<TreeEntry, 'mode' | 'accessedNs' | 'modifiedNs'>;

interface Directory extends Attributes {
  /** It was there before */
  readonly existed: boolean;
}

/** What one of those takes besides its path, generously. */
const LINKED_FILE_BYTES = 256;

/** A file that may get further names. */
interface LinkedFile {
  readonly below: Buffer;
  readonly dev: bigint;
  readonly ino: bigint;
}

/**
 * A time as Node takes it: seconds as text, since it takes negative numbers for the present. libuv
 * cuts off what is less than a microsecond, so that half of one more makes up for what a double lacks.
 */
function nodeTime(ns: bigint): string {
  const us = Number(ns / 1000n);
  return String((us < 0 ? us - 0.5 : us + 0.5) / 1e6);
}

/** The file that is being written. */
interface OpenFile {
  readonly handle: FileHandle;
  readonly name: Buffer;
  readonly attributes: Attributes;
  /** End of what has been written */
  written: number;
}

/**
 * Makes a tree entry by entry, in the order in which they come.
 *
 * Lifetime: until {@link close}, which a caller owes it however the tree ends. At most two directories,
 * a large file and some small ones are open.
 */
export class TreePlace {
  readonly #trail: HostTrail<Directory>;
  readonly #linked: LinkedFile[] = [];
  #linkedBytes = 0;
  #file: OpenFile | undefined;
  /** The top directory, which links are looked up from */
  #top: FileHandle | undefined;
  /** Small files that are being made in the directory that is open */
  readonly #making = new Map<string, Promise<void>>();
  /** The first of them that could not be made */
  #failed: { readonly error: unknown } | undefined;

  constructor(path: Buffer) {
    this.#trail = new HostTrail(path);
  }

  /** 0 above the tree. */
  get depth(): number {
    return this.#trail.depth;
  }

  /** What files take in memory that may get further names. */
  get linkedBytes(): number {
    return this.#linkedBytes;
  }

  /** Bytes of an entry's path below the top. */
  pathBytes(name: Buffer): number {
    return this.#trail.below(name).length;
  }

  /** Closes what is open, and removes a file that is not complete. */
  async close(): Promise<void> {
    await Promise.all(this.#making.values());
    const file = this.#file;
    this.#file = undefined;
    if (file !== undefined) {
      await file.handle.close();
      await unlink(this.#trail.reach(file.name)).catch(() => {});
    }
    await this.#top?.close();
    this.#top = undefined;
    await this.#trail.close();
  }

  /** Waits until all files are there that were to be made in the directory. */
  async settle(): Promise<void> {
    await Promise.all(this.#making.values());
    if (this.#failed !== undefined) throw this.#failed.error;
  }

  /** Makes a directory, or takes the one that is there, and goes into it. */
  async directory(name: Buffer, entry: TreeEntry): Promise<void> {
    await this.settle();
    const trail = this.#trail;
    await trail.named(name, async () => {
      const existed = await exists(mkdir(trail.reach(name), UNFINISHED_DIRECTORY_MODE));
      const handle = await trail.openDirectory(name);
      if (trail.depth === 0) {
        this.#top = await open(reachFrom(handle, Buffer.from('.')), OPEN_DIRECTORY).catch(
          async (error) => {
            await handle.close();
            throw error;
          },
        );
      }
      const { mode, accessedNs, modifiedNs } = entry;
      await trail.enter(name, handle, { mode, accessedNs, modifiedNs, existed });
    });
  }

  /** Completes the directory. One that was there keeps its mode: the guest has no say in that. */
  async leave(): Promise<void> {
    await this.settle();
    const trail = this.#trail;
    await trail.named(NO_NAME, async () => {
      const { left, data } = await trail.leave();
      try {
        if (!data.existed) await finish(left, data);
      } finally {
        await left.close();
      }
    });
  }

  /** Makes a file with all of its contents, a few of them at once. A failure shows later. */
  async wholeFile(name: Buffer, entry: TreeEntry, contents: Buffer): Promise<void> {
    if (this.#making.size >= AT_ONCE) await Promise.race(this.#making.values());
    const key = name.toString('latin1');
    await this.#making.get(key);
    if (this.#failed !== undefined) throw this.#failed.error;
    const made = this.#make(name, entry, contents)
      .catch((error: unknown) => {
        this.#failed ??= { error };
      })
      .finally(() => this.#making.delete(key));
    this.#making.set(key, made);
  }

  async #make(name: Buffer, entry: TreeEntry, contents: Buffer): Promise<void> {
    const path = this.#trail.reach(name);
    await this.#trail.named(name, async () => {
      const handle = await this.#create(path);
      try {
        await writeAll(handle, contents, 0);
        await finish(handle, entry);
      } catch (error) {
        await unlink(path).catch(() => {});
        throw error;
      } finally {
        await handle.close();
      }
    });
  }

  #create(path: Buffer): Promise<FileHandle> {
    return this.#replacing(path, () => open(path, CREATE_FILE, UNFINISHED_FILE_MODE));
  }

  async beginFile(name: Buffer, entry: TreeEntry): Promise<void> {
    await this.settle();
    const trail = this.#trail;
    await trail.named(name, async () => {
      const handle = await this.#create(trail.reach(name));
      const { mode, accessedNs, modifiedNs } = entry;
      this.#file = { handle, name, attributes: { mode, accessedNs, modifiedNs }, written: 0 };
      if (!entry.linked) return;
      const { dev, ino } = await handle.stat({ bigint: true });
      const below = trail.below(name);
      this.#linked.push({ below, dev, ino });
      this.#linkedBytes += below.length + LINKED_FILE_BYTES;
    });
  }

  async write(offset: number, bytes: Buffer): Promise<void> {
    const file = this.#openFile();
    await this.#trail.named(file.name, () => writeAll(file.handle, bytes, offset));
    file.written = offset + bytes.length;
  }

  async endFile(size: number): Promise<void> {
    const file = this.#openFile();
    await this.#trail.named(file.name, async () => {
      if (size > file.written) await file.handle.truncate(size);
      await finish(file.handle, file.attributes);
      this.#file = undefined;
      await file.handle.close();
    });
  }

  async symlink(name: Buffer, entry: TreeEntry, target: Buffer): Promise<void> {
    await this.settle();
    const path = this.#trail.reach(name);
    await this.#trail.named(name, async () => {
      await this.#replacing(path, () => symlink(target, path));
      await lutimes(path, nodeTime(entry.accessedNs), nodeTime(entry.modifiedNs));
    });
  }

  /** Gives a file of this tree another name. */
  async link(name: Buffer, number: number): Promise<void> {
    await this.settle();
    const trail = this.#trail;
    const file = this.#linked[number];
    if (file === undefined) throw new ProtocolError(`a link to file ${number}, which is not there`);
    if (trail.below(name).equals(file.below)) throw new ProtocolError('a link to itself');
    const path = trail.reach(name);
    await trail.named(name, () =>
      this.#inParent(file.below, async (from) => {
        // A file that has taken its place may have its number as well, and is of this tree, too.
        const status = await lstat(from, { bigint: true });
        if (!status.isFile() || status.dev !== file.dev || status.ino !== file.ino) {
          throw new ProtocolError(`a link to file ${number}, which has been replaced`);
        }
        await this.#replacing(path, () => link(from, path));
      }),
    );
  }

  #openFile(): OpenFile {
    if (this.#file === undefined) throw new Error('No file is open');
    return this.#file;
  }

  /** Makes an entry where there may be one, which is removed then; a directory is not. */
  async #replacing<T>(path: Buffer, make: () => Promise<T>): Promise<T> {
    try {
      return await make();
    } catch (error) {
      if (!failedWith(error, 'EEXIST')) throw error;
    }
    await unlink(path);
    return await make();
  }

  /** Reaches an entry by its path below the top, a name at a time, so that none of them is a link. */
  async #inParent<T>(below: Buffer, call: (path: Buffer) => Promise<T>): Promise<T> {
    let at = this.#top;
    if (at === undefined) throw new ProtocolError('a link outside of a directory');
    let start = 0;
    try {
      for (let slash = below.indexOf(SLASH); slash >= 0; slash = below.indexOf(SLASH, start)) {
        const above: FileHandle = at;
        at = await open(reachFrom(above, below.subarray(start, slash)), OPEN_DIRECTORY);
        if (above !== this.#top) await above.close();
        start = slash + 1;
      }
      return await call(reachFrom(at, below.subarray(start)));
    } finally {
      if (at !== this.#top) await at.close();
    }
  }
}

/** Whether what was to be made was there already. */
async function exists(made: Promise<void>): Promise<boolean> {
  try {
    await made;
    return false;
  } catch (error) {
    if (failedWith(error, 'EEXIST')) return true;
    throw error;
  }
}

async function writeAll(handle: FileHandle, bytes: Buffer, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const left = bytes.length - done;
    done += (await handle.write(bytes, done, left, offset + done)).bytesWritten;
  }
}

async function finish(handle: FileHandle, attributes: Attributes): Promise<void> {
  await handle.chmod(attributes.mode);
  await handle.utimes(nodeTime(attributes.accessedNs), nodeTime(attributes.modifiedNs));
}
