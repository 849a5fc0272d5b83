// Sending a tree of the host to a guest.

import { type BigIntStats, constants, type Dirent } from 'node:fs';
import { type FileHandle, lstat, open, readdir, readlink } from 'node:fs/promises';

import type { TransferSummary } from '../guest-fs-options.js';
import { sendContents } from './host-contents.js';
import { HostTrail, reachFrom } from './host-trail.js';
import {
  encodeTreeEntry,
  MAX_PATH_BYTES,
  TREE_MODE_BITS,
  type TreeEntryFields,
  TreeType,
} from './protocol.js';
import type { TreeOutput } from './tree-output.js';
import { newCounts } from './tree-unpack.js';

/** What is no file fails at once, instead of holding a thread up. */
const OPEN_FILE = constants.O_RDONLY | constants.O_NONBLOCK;

const EINVAL = 22;
const ENAMETOOLONG = 36;

const NO_NAME = Buffer.alloc(0);

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
      await this.#opened(NO_NAME, handle);
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
    for (const entry of await this.#trail.named(NO_NAME, () => listOf(handle))) {
      if (entry.isDirectory()) waiting.push(entry.name);
      else await this.#entry(entry);
    }
  }

  #expectRoom(name: Buffer): void {
    if (this.#trail.below(name).length <= MAX_PATH_BYTES) return;
    throw this.#trail.failure(ENAMETOOLONG, 'upload', name);
  }

  async #entry(entry: Dirent<Buffer>): Promise<void> {
    this.#expectRoom(entry.name);
    if (entry.isFile()) await this.#file(entry.name);
    else if (entry.isSymbolicLink()) await this.#symlink(entry.name);
    else throw this.#refusal(entry.name);
  }

  #refusal(name: Buffer): Error {
    const error = this.#trail.failure(EINVAL, 'upload', name);
    error.message += ': it is neither a file nor a directory nor a symbolic link';
    return error;
  }

  async #file(name: Buffer): Promise<void> {
    const path = this.#trail.reach(name);
    const flags = OPEN_FILE | constants.O_NOFOLLOW;
    await this.#opened(name, await this.#trail.named(name, () => open(path, flags)));
  }

  /** Sends a file, and closes it. */
  async #opened(name: Buffer, handle: FileHandle): Promise<void> {
    try {
      const status = await handle.stat({ bigint: true });
      if (!status.isFile()) throw this.#refusal(name);
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
      await this.#trail.named(name, () => sendContents(this.#output, handle, status));
    } finally {
      await handle.close();
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

  async #symlink(name: Buffer): Promise<void> {
    const path = this.#trail.reach(name);
    const [status, target] = await this.#trail.named(name, async () => [
      await lstat(path, { bigint: true }),
      await readlink(path, { encoding: 'buffer' }),
    ]);
    this.#counts.symlinks++;
    await this.#putEntry(TreeType.symlink, name, status, { mode: 0, target });
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
