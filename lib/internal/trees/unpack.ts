// Reading a tree that a guest sends. Whatever it sends either is a tree, within its limits, or ends
// the transfer.

import { VmError } from '../../errors.js';
import type { TransferSummary } from '../../guest-fs-options.js';
import {
  isName,
  MAX_PATH_BYTES,
  ProtocolError,
  parseTreeEntry,
  parseTreeRun,
  TREE_ENTRY_BYTES,
  TREE_RUN_BYTES,
  type TreeEntry,
  type TreeRun,
  TreeType,
} from '../protocol/protocol.js';
import type { TreeInput } from './input.js';
import type { TreePlace } from './place.js';

/** Bound of what is known of files that the guest says have further names, in bytes. */
const MAX_LINKED_BYTES = 64 * 1024 * 1024;

/** Taken in whole before it is made, in bytes. */
const SMALL_FILE_BYTES = 16 * 1024;

/** Written in one call. */
const MAX_WRITE_BYTES = 256 * 1024;

export interface TransferLimits {
  readonly maxBytes: number;
  readonly maxEntries: number;
}

/** Counts what a transfer has done. */
export type TransferCounts = { -readonly [Name in keyof TransferSummary]: TransferSummary[Name] };

export function newCounts(): TransferCounts {
  return { files: 0, directories: 0, symlinks: 0, links: 0, bytes: 0, skipped: 0 };
}

export class TreeUnpacker {
  readonly #input: TreeInput;
  readonly #place: TreePlace;
  readonly #limits: TransferLimits;
  readonly #counts = newCounts();
  #entries = 0;
  /** What symbolic links say */
  #linkBytes = 0;

  constructor(input: TreeInput, place: TreePlace, limits: TransferLimits) {
    this.#input = input;
    this.#place = place;
    this.#limits = limits;
  }

  async run(): Promise<TransferSummary> {
    while (await this.#next());
    await this.#place.settle();
    if (!(await this.#input.ended())) throw new ProtocolError('bytes behind the end of a tree');
    return this.#counts;
  }

  /** Reads an entry; `false` when it is the end. */
  async #next(): Promise<boolean> {
    const entry = parseTreeEntry(await this.#input.take(TREE_ENTRY_BYTES));
    if (entry.type === TreeType.leave) await this.#leave(entry);
    else if (entry.type !== TreeType.end) await this.#named(entry);
    else this.#end(entry);
    return entry.type !== TreeType.end;
  }

  get #inside(): boolean {
    return this.#place.depth > 0;
  }

  async #leave({ nameBytes }: TreeEntry): Promise<void> {
    if (!this.#inside || nameBytes > 0) throw new ProtocolError('a tree leaves what it is not in');
    await this.#place.leave();
  }

  #end({ nameBytes, size }: TreeEntry): void {
    if (this.#inside || this.#entries === 0 || nameBytes > 0) {
      throw new ProtocolError('a tree ends before it is complete');
    }
    this.#counts.skipped = size;
  }

  async #named(entry: TreeEntry): Promise<void> {
    const isTop = this.#entries === 0;
    if (!isTop && !this.#inside) throw new ProtocolError('a second tree');
    const name = await this.#input.take(entry.nameBytes);
    if (isTop ? name.length > 0 : !isName(name)) {
      throw new ProtocolError('a tree with a name that leads elsewhere');
    }
    if (this.#place.pathBytes(name) > MAX_PATH_BYTES) {
      throw new ProtocolError('a tree with a path that is too long');
    }
    this.#count(entry);
    switch (entry.type) {
      case TreeType.directory:
        this.#counts.directories++;
        return await this.#place.directory(name, entry);
      case TreeType.file:
        return await this.#file(name, entry);
      case TreeType.symlink:
        if (isTop) break;
        return await this.#symlink(name, entry);
      case TreeType.link:
        if (isTop) break;
        this.#counts.links++;
        return await this.#place.link(name, entry.size);
    }
    throw new ProtocolError('a tree that is neither a directory nor a file');
  }

  /** Counts an entry, before anything of it is made. */
  #count({ type, size }: TreeEntry): void {
    const { maxEntries, maxBytes } = this.#limits;
    if (++this.#entries > maxEntries) throw tooMuch(`more than ${maxEntries} entries`);
    if (type === TreeType.file) this.#counts.bytes += size;
    if (type === TreeType.symlink) this.#linkBytes += size;
    if (this.#counts.bytes + this.#linkBytes > maxBytes) {
      throw tooMuch(`more than ${maxBytes} bytes`);
    }
  }

  async #symlink(name: Buffer, entry: TreeEntry): Promise<void> {
    const target = await this.#input.take(entry.size);
    if (target.includes(0)) throw new ProtocolError('a symbolic link with NUL');
    this.#counts.symlinks++;
    await this.#place.symlink(name, entry, target);
  }

  async #file(name: Buffer, entry: TreeEntry): Promise<void> {
    this.#counts.files++;
    const { size, linked } = entry;
    if (size === 0 && !linked) return await this.#place.wholeFile(name, entry, Buffer.alloc(0));
    const first = size === 0 ? undefined : await this.#run(0, size);
    if (first?.bytes === size && size <= SMALL_FILE_BYTES && !linked) {
      return await this.#place.wholeFile(name, entry, await this.#input.take(size));
    }
    await this.#place.beginFile(name, entry);
    if (this.#place.linkedBytes > MAX_LINKED_BYTES) {
      throw tooMuch(`files with hard links that take more than ${MAX_LINKED_BYTES} bytes`);
    }
    let known = 0;
    for (let run = first; run !== undefined; ) {
      known = run.offset + run.bytes;
      await this.#contents(run.offset, run.bytes);
      run = run.bytes > 0 && known < size ? await this.#run(known, size) : undefined;
    }
    await this.#place.endFile(known);
  }

  async #run(known: number, size: number): Promise<TreeRun> {
    return parseTreeRun(await this.#input.take(TREE_RUN_BYTES), known, size);
  }

  async #contents(offset: number, count: number): Promise<void> {
    for (let done = 0; done < count; ) {
      const bytes = await this.#input.look(Math.min(count - done, MAX_WRITE_BYTES));
      await this.#place.write(offset + done, bytes);
      this.#input.release(bytes.length);
      done += bytes.length;
    }
  }
}

function tooMuch(what: string): VmError {
  return new VmError({
    code: 'ERR_VM_MAX_TRANSFER',
    message: `The guest has ${what} to download: raise the limit if that is what you want`,
  });
}
