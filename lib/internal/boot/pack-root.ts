// Makes the initramfs that a VM boots from: the caller's root and the agent.

import { constants } from 'node:fs';
import { type FileHandle, lstat, open, readdir, readlink, stat } from 'node:fs/promises';

import { VmError } from '../../errors.js';
import { MiB } from '../../units.js';
import {
  type CpioEntry,
  CpioError,
  CpioScanner,
  CpioWriter,
  FileKind,
  KIND_MASK,
  MAX_FILE_BYTES,
  padding,
  pagePadding,
} from './cpio.js';
import type { KernelModule } from './kernel-modules.js';

/** Bytes that one read asks for. */
const CHUNK_BYTES = MiB;
/** Guest memory that is not available for files at boot: kernel and its data. */
const KERNEL_BYTES = 24 * MiB;
/** The agent's directory in the guest; guest/agent/modules.c knows `modules` in it. */
const AGENT_DIRECTORY = '.forklet';
const MODULE_DIRECTORY = `${AGENT_DIRECTORY}/modules`;

export interface PackOptions {
  /** Directory of the host, or cpio archive (newc, uncompressed). */
  readonly root: string;
  /** The agent's program. */
  readonly agent: Uint8Array;
  /** What the agent loads before it dials the host, in order. */
  readonly modules?: readonly KernelModule[];
  /** Most bytes that all segments together may have; see {@link maxRootBytes}. */
  readonly maxBytes: number;
  readonly signal?: AbortSignal | undefined;
}

/**
 * What fits into a guest: its kernel unpacks the archive while it is in memory, so there are two
 * copies for a moment.
 */
export function maxRootBytes(memoryBytes: number): number {
  return Math.max(0, Math.floor((memoryBytes - KERNEL_BYTES) / 2));
}

/**
 * Packs the root, then the agent as /.forklet/agent, whatever the root has there, and modules beside
 * it.
 *
 * Directories that the agent mounts on come first, so that a root without them boots, and one with
 * them decides their modes. Of a host directory: symbolic links stay links and are never followed,
 * hard links stay together, sockets are left out, and files of the calling user are root's in the
 * guest, as if it had packed its own machine.
 *
 * @returns segments of the archive in order, each a multiple of 4 bytes long.
 * @throws {VmError} `ERR_VM_BAD_ROOT`: missing, unreadable, or neither directory nor archive.
 *   `ERR_VM_NO_MEMORY`: larger than `maxBytes`.
 * @throws {AbortError} `signal` was aborted.
 */
export async function packRoot(options: PackOptions): Promise<Uint8Array[]> {
  const { root, agent, signal } = options;
  const segments = new Segments(options);
  const writer = new CpioWriter();
  for (const entry of mountPoints()) segments.add(writer.entry(entry, segments.bytes));
  const kind = await naming(root, stat(root));
  if (kind.isDirectory()) {
    await new DirectoryPacker(segments, writer, signal).pack(Buffer.from(root));
  } else if (kind.isFile()) {
    segments.add(writer.trailer());
    segments.add(pagePadding(segments.bytes));
    await copyArchive(root, segments, signal);
  } else {
    throw badRoot(root, 'is neither a directory nor a file');
  }
  for (const entry of agentFiles(agent, options.modules ?? [])) {
    segments.add(writer.entry(entry, segments.bytes));
  }
  segments.add(writer.trailer());
  signal?.throwIfAborted();
  return segments.finish();
}

function mountPoints(): CpioEntry[] {
  const directories = [
    ['dev', 0o755],
    ['proc', 0o555],
    ['sys', 0o555],
    ['run', 0o755],
    ['tmp', 0o1777],
  ] as const;
  const entries: CpioEntry[] = directories.map(([path, permissions]) => ({
    path,
    mode: FileKind.directory | permissions,
  }));
  // The kernel opens it for PID 1 before anything is mounted.
  const mode = FileKind.characterDevice | 0o600;
  entries.push({ path: 'dev/console', mode, major: 5, minor: 1 });
  return entries;
}

function agentFiles(agent: Uint8Array, modules: readonly KernelModule[]): CpioEntry[] {
  const directory = (path: string) => ({ path, mode: FileKind.directory | 0o755 });
  const file = (path: string, permissions: number, data: Uint8Array) => ({
    path,
    mode: FileKind.regular | permissions,
    data,
  });
  const entries = [directory(AGENT_DIRECTORY), file(`${AGENT_DIRECTORY}/agent`, 0o755, agent)];
  if (modules.length === 0) return entries;
  const order = modules.map(({ fileName }) => `${fileName}\n`).join('');
  return [
    ...entries,
    directory(MODULE_DIRECTORY),
    ...modules.map(({ fileName, data }) => file(`${MODULE_DIRECTORY}/${fileName}`, 0o644, data)),
    file(`${MODULE_DIRECTORY}/order`, 0o644, Buffer.from(order)),
  ];
}

/** Collects segments, small ones joined, and keeps count. */
class Segments {
  readonly #root: string;
  readonly #maxBytes: number;
  readonly #done: Uint8Array[] = [];
  #small: Uint8Array[] = [];
  #smallBytes = 0;
  #totalBytes = 0;

  constructor({ root, maxBytes }: PackOptions) {
    this.#root = root;
    this.#maxBytes = maxBytes;
  }

  /** Bytes of the image so far. */
  get bytes(): number {
    return this.#totalBytes;
  }

  /** Throws when `bytes` more would be too many: before they are read. */
  reserve(bytes: number): void {
    if (this.#totalBytes + bytes <= this.#maxBytes) return;
    throw new VmError({
      code: 'ERR_VM_NO_MEMORY',
      message:
        `Root '${this.#root}' packs to more than the ${Math.floor(this.#maxBytes / MiB)} MiB that ` +
        "the guest's memory has room for. Raise memoryBytes, or make the root smaller.",
    });
  }

  add(segment: Uint8Array): void {
    if (segment.byteLength === 0) return;
    this.reserve(segment.byteLength);
    this.#totalBytes += segment.byteLength;
    this.#small.push(segment);
    this.#smallBytes += segment.byteLength;
    if (this.#smallBytes >= CHUNK_BYTES) this.#join();
  }

  finish(): Uint8Array[] {
    this.add(padding(this.#totalBytes));
    this.#join();
    return this.#done;
  }

  /** The joined segments are a multiple of 4 bytes long; what is over stays for the next. */
  #join(): void {
    const joined = this.#small.length === 1 ? this.#small[0] : Buffer.concat(this.#small);
    if (!joined) return;
    const whole = joined.byteLength - (joined.byteLength % 4);
    this.#done.push(joined.subarray(0, whole));
    this.#small = whole < joined.byteLength ? [joined.subarray(whole)] : [];
    this.#smallBytes = joined.byteLength - whole;
  }
}

/** Reads exactly `size` bytes into the archive, and their padding. */
async function addContents(segments: Segments, file: FileHandle, size: number, path: Buffer) {
  segments.reserve(size);
  let left = size;
  while (left > 0) {
    const chunk = Buffer.allocUnsafe(Math.min(left, CHUNK_BYTES));
    const { bytesRead } = await naming(path, file.read(chunk, 0, chunk.length, null));
    if (bytesRead === 0) throw badRoot(path, 'became shorter while it was read');
    segments.add(chunk.subarray(0, bytesRead));
    left -= bytesRead;
  }
  segments.add(padding(size));
}

async function addFile(
  segments: Segments,
  writer: CpioWriter,
  hostPath: Buffer,
  entry: { path: Buffer; mode: number },
  more: { uid: number; gid: number; mtime: number; inode?: number; links?: number },
): Promise<void> {
  // Neither a link nor a FIFO that has taken the file's place since it was looked at.
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const file = await naming(hostPath, open(hostPath, flags));
  try {
    const found = await naming(hostPath, file.stat());
    const { size } = found;
    if (!found.isFile()) throw badRoot(hostPath, 'is not a regular file any more');
    if (size > MAX_FILE_BYTES) throw badRoot(hostPath, 'is larger than 4 GiB');
    segments.add(writer.header({ ...entry, ...more, dataBytes: size }, segments.bytes));
    await addContents(segments, file, size, hostPath);
  } finally {
    await file.close();
  }
}

class DirectoryPacker {
  readonly #segments: Segments;
  readonly #writer: CpioWriter;
  readonly #signal: AbortSignal | undefined;
  /** Numbers of files with several links that are in the archive, by device and inode. */
  readonly #linked = new Map<string, number>();

  constructor(segments: Segments, writer: CpioWriter, signal: AbortSignal | undefined) {
    this.#segments = segments;
    this.#writer = writer;
    this.#signal = signal;
  }

  async pack(root: Buffer): Promise<void> {
    // A stack of directories instead of recursion: depth is the host's, not ours, to choose.
    const pending: { host: Buffer; guest: Buffer }[] = [{ host: root, guest: Buffer.alloc(0) }];
    for (let next = pending.pop(); next; next = pending.pop()) {
      const { host, guest } = next;
      const names = await naming(host, readdir(host, { encoding: 'buffer' }));
      // The same tree makes the same archive.
      names.sort(Buffer.compare);
      for (const name of names) {
        this.#signal?.throwIfAborted();
        const at = { host: join(host, name), guest: join(guest, name) };
        if (at.guest.equals(Buffer.from(AGENT_DIRECTORY))) continue;
        if (await this.#pack(at.host, at.guest)) pending.push(at);
      }
    }
  }

  #add(entry: CpioEntry): void {
    this.#segments.add(this.#writer.entry(entry, this.#segments.bytes));
  }

  /** True when it is a directory. */
  async #pack(host: Buffer, guest: Buffer): Promise<boolean> {
    const found = await naming(host, lstat(host, { bigint: true }));
    const kind = Number(found.mode) & KIND_MASK;
    if (kind === FileKind.socket) return false;
    const entry = { path: guest, mode: Number(found.mode) };
    const more = {
      uid: guestId(Number(found.uid), process.getuid?.()),
      gid: guestId(Number(found.gid), process.getgid?.()),
      mtime: Math.min(Math.max(0, Number(found.mtimeNs / 1_000_000_000n)), 0xffff_ffff),
    };
    if (kind === FileKind.regular) {
      await this.#addRegular(host, entry, more, found);
    } else if (kind === FileKind.symlink) {
      const data = await naming(host, readlink(host, { encoding: 'buffer' }));
      this.#add({ ...entry, ...more, data });
    } else {
      this.#add({ ...entry, ...more, ...deviceNumber(kind, found.rdev) });
    }
    return kind === FileKind.directory;
  }

  async #addRegular(
    host: Buffer,
    entry: { path: Buffer; mode: number },
    more: { uid: number; gid: number; mtime: number },
    found: { dev: bigint; ino: bigint; nlink: bigint },
  ): Promise<void> {
    if (found.nlink < 2n) {
      await addFile(this.#segments, this.#writer, host, entry, more);
      return;
    }
    const key = `${found.dev}:${found.ino}`;
    const known = this.#linked.get(key);
    const inode = known ?? this.#writer.newInode();
    const link = { ...more, inode, links: Number(found.nlink) };
    if (known === undefined) {
      this.#linked.set(key, inode);
      await addFile(this.#segments, this.#writer, host, entry, link);
    } else {
      this.#add({ ...entry, ...link });
    }
  }
}

function join(directory: Buffer, name: Buffer): Buffer {
  return directory.length === 0 ? name : Buffer.concat([directory, Buffer.from('/'), name]);
}

function guestId(id: number, own: number | undefined): number {
  return id === own ? 0 : id;
}

/** The kernel's encoding of dev_t for user space, taken apart. */
function deviceNumber(kind: number, rdev: bigint): { major?: number; minor?: number } {
  if (kind !== FileKind.characterDevice && kind !== FileKind.blockDevice) return {};
  return {
    major: Number(((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xffff_f000n)),
    minor: Number((rdev & 0xffn) | ((rdev >> 12n) & 0xffff_ff00n)),
  };
}

async function copyArchive(path: string, segments: Segments, signal: AbortSignal | undefined) {
  const file = await naming(path, open(path));
  try {
    const scanner = new CpioScanner();
    for (;;) {
      signal?.throwIfAborted();
      const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
      const { bytesRead } = await naming(path, file.read(chunk, 0, chunk.length, null));
      if (bytesRead === 0) break;
      const bytes = chunk.subarray(0, bytesRead);
      scanner.push(bytes);
      segments.add(bytes);
    }
    scanner.end();
    // The next archive starts at a multiple of 4 bytes.
    segments.add(padding(scanner.position));
  } catch (error) {
    throw error instanceof CpioError ? badRoot(path, error.message, error) : error;
  } finally {
    await file.close();
  }
}

function badRoot(path: string | Buffer, problem: string, cause?: unknown): VmError {
  return new VmError({ code: 'ERR_VM_BAD_ROOT', message: `Root '${path}' ${problem}.`, cause });
}

/** Turns a failure into one that names the file. */
async function naming<T>(path: string | Buffer, result: Promise<T>): Promise<T> {
  try {
    return await result;
  } catch (error) {
    const { code, errno, syscall } = error as NodeJS.ErrnoException;
    throw new VmError({
      code: 'ERR_VM_BAD_ROOT',
      message: `Cannot read '${path}' of the root: ${code ?? String(error)}.`,
      ...(errno !== undefined && { errno }),
      ...(syscall !== undefined && { syscall }),
      cause: error,
    });
  }
}
