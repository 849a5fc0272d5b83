// Sending a tree of the host to a guest.

import { type BigIntStats, constants, type Dirent } from 'node:fs';
import { type FileHandle, lstat, open, readdir, readlink } from 'node:fs/promises';

import type { TransferSummary } from '../../guest-fs-options.js';
import {
  encodeTreeEntry,
  MAX_PATH_BYTES,
  TREE_MODE_BITS,
  type TreeEntryFields,
  TreeType,
} from '../protocol/protocol.js';
import { mayHaveHoles, sendContents, sendLoaded } from './host-contents.js';
import { HostTrail, reachFrom } from './host-trail.js';
import type { TreeOutput } from './output.js';
import { newCounts } from './unpack.js';

/** What is no file fails at once, instead of holding a thread up. */
const OPEN_FILE = constants.O_RDONLY | constants.O_NONBLOCK;

const EINVAL = 22;
const ENAMETOOLONG = 36;

const NO_NAME = Buffer.alloc(0);

/** Files that are opened and read at once; Node has four threads for that. */
const AT_ONCE = 8;
/** Read before it is sent, in bytes. */
const SMALL_FILE_BYTES = 16 * 1024;

/** What is about to be sent. */
interface Loaded {
  readonly name: Buffer;
  readonly status: BigIntStats;
  /** Of a symbolic link */
  readonly target?: Buffer;
  /** Of a small file */
  readonly contents?: Buffer;
  /** Of another one, open */
  readonly handle?: FileHandle;
}

/** Directories that are gone into when what they are in has been read. */
type Waiting = Buffer[];

export class TreePacker {
  readonly #path: Buffer;
  readonly #trail: HostTrail<Waiting>;
  readonly #output: TreeOutput;
  readonly #counts = newCounts();
  /** Numbers of files with several names, by what they are */
  readonly #linked = new Map<string, number>();

  constructor(path: Buffer, output: TreeOutput) {
    this.#path = path;
    this.#trail = new HostTrail(path);
    this.#output = output;
  }

  async run(): Promise<TransferSummary> {
    try {
      await this.#top();
    } finally {
      await this.#trail.close();
    }
    await this.#output.put(encodeTreeEntry({ type: TreeType.end }));
    await this.#output.end();
    return this.#counts;
  }

  /** The path itself is followed; nothing below is. */
  async #top(): Promise<void> {
    const handle = await this.#trail.named(NO_NAME, () => open(this.#path, OPEN_FILE));
    if (!(await isDirectory(handle))) {
      const loaded = await this.#loadFile(NO_NAME, handle);
      await this.#send(loaded).finally(() => loaded.handle?.close());
      return;
    }
    await this.#enter(NO_NAME, handle);
    while (this.#trail.depth > 0) await this.#goOn();
  }

  /** Goes into the next directory, or leaves this one. */
  async #goOn(): Promise<void> {
    const name = this.#trail.data.pop();
    if (name !== undefined) {
      this.#expectRoom(name);
      const handle = await this.#trail.named(name, () => this.#trail.openDirectory(name));
      await this.#enter(name, handle);
      return;
    }
    const { left } = await this.#trail.leave();
    await left.close();
    await this.#output.put(encodeTreeEntry({ type: TreeType.leave }));
  }

  /** Sends a directory's files, and notes the directories in it. */
  async #enter(name: Buffer, handle: FileHandle): Promise<void> {
    const waiting: Waiting = [];
    await this.#trail.enter(name, handle, waiting);
    this.#counts.directories++;
    await this.#putEntry(TreeType.directory, name, await handle.stat({ bigint: true }));
    const entries: Dirent<Buffer>[] = [];
    for (const entry of await this.#trail.named(NO_NAME, () => listOf(handle))) {
      if (entry.isDirectory()) waiting.push(entry.name);
      else entries.push(entry);
    }
    for (let i = 0; i < entries.length; i += AT_ONCE) {
      await this.#some(entries.slice(i, i + AT_ONCE));
    }
  }

  /** Opens and reads entries at once, which a disk and threads do, and sends them one by one. */
  async #some(entries: readonly Dirent<Buffer>[]): Promise<void> {
    const loading = await Promise.allSettled(entries.map((entry) => this.#load(entry)));
    try {
      for (const loaded of loading) {
        if (loaded.status === 'rejected') throw loaded.reason;
        await this.#send(loaded.value);
      }
    } finally {
      for (const loaded of loading) {
        if (loaded.status === 'fulfilled') await loaded.value.handle?.close();
      }
    }
  }

  #expectRoom(name: Buffer): void {
    if (this.#trail.below(name).length <= MAX_PATH_BYTES) return;
    throw this.#trail.failure(ENAMETOOLONG, 'upload', name);
  }

  async #load(entry: Dirent<Buffer>): Promise<Loaded> {
    const { name } = entry;
    this.#expectRoom(name);
    const path = this.#trail.reach(name);
    if (entry.isFile()) {
      const flags = OPEN_FILE | constants.O_NOFOLLOW;
      return await this.#loadFile(name, await this.#trail.named(name, () => open(path, flags)));
    }
    if (!entry.isSymbolicLink()) throw this.#refusal(name);
    return await this.#trail.named(name, async () => {
      const status = await lstat(path, { bigint: true });
      return { name, status, target: await readlink(path, { encoding: 'buffer' }) };
    });
  }

  /** Reads a small file, and closes it; others stay open. */
  async #loadFile(name: Buffer, handle: FileHandle): Promise<Loaded> {
    try {
      const status = await handle.stat({ bigint: true });
      if (!status.isFile()) throw this.#refusal(name);
      const isPlain = status.nlink <= 1n && !mayHaveHoles(status);
      if (!isPlain || status.size > SMALL_FILE_BYTES) return { name, status, handle };
      const contents = Buffer.allocUnsafe(Number(status.size));
      const { bytesRead } = await handle.read(contents, 0, contents.length, 0);
      await handle.close();
      return { name, status, contents: contents.subarray(0, bytesRead) };
    } catch (error) {
      await handle.close();
      throw this.#trail.rename(error, name);
    }
  }

  #refusal(name: Buffer): Error {
    const error = this.#trail.failure(EINVAL, 'upload', name);
    error.message += ': it is neither a file nor a directory nor a symbolic link';
    return error;
  }

  async #send({ name, status, target, contents, handle }: Loaded): Promise<void> {
    if (target !== undefined) {
      this.#counts.symlinks++;
      await this.#putEntry(TreeType.symlink, name, status, { mode: 0, target });
      return;
    }
    const number = this.#numberOf(status);
    if (number !== undefined) {
      this.#counts.links++;
      await this.#output.put(encodeTreeEntry({ type: TreeType.link, name, size: number }));
      return;
    }
    const size = Number(status.size);
    this.#counts.files++;
    this.#counts.bytes += size;
    const linked = status.nlink > 1n;
    await this.#putEntry(TreeType.file, name, status, { linked, size });
    if (contents !== undefined) await sendLoaded(this.#output, contents, size);
    else if (handle !== undefined) {
      await this.#trail.named(name, () => sendContents(this.#output, handle, status));
    }
  }

  /** The number of a file that has been sent under another name; a new one gets one if need be. */
  #numberOf({ dev, ino, nlink }: BigIntStats): number | undefined {
    if (nlink <= 1n) return undefined;
    const id = `${dev}:${ino}`;
    const number = this.#linked.get(id);
    if (number === undefined) this.#linked.set(id, this.#linked.size);
    return number;
  }

  async #putEntry(
    type: number,
    name: Buffer,
    status: BigIntStats,
    more: Partial<TreeEntryFields> = {},
  ): Promise<void> {
    const { mode, atimeNs, mtimeNs } = status;
    await this.#output.put(
      encodeTreeEntry({
        type,
        name,
        mode: Number(mode) & TREE_MODE_BITS,
        accessedNs: BigInt.asIntN(64, atimeNs),
        modifiedNs: BigInt.asIntN(64, mtimeNs),
        ...more,
      }),
    );
  }
}

async function isDirectory(handle: FileHandle): Promise<boolean> {
  try {
    return (await handle.stat()).isDirectory();
  } catch (error) {
    await handle.close();
    throw error;
  }
}

function listOf(directory: FileHandle): Promise<Dirent<Buffer>[]> {
  return readdir(reachFrom(directory, Buffer.from('.')), {
    withFileTypes: true,
    encoding: 'buffer',
  });
}
