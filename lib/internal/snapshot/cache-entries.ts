// The directory of snapshots that `Snapshot.ensure()` keeps: one directory for each, named by what
// it was made from, and a description beside it for people.

import { randomBytes } from 'node:crypto';
import {
  lstat,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { homedir } from 'node:os';
import path from 'node:path';

import { VmError } from '../../errors.js';

/** What is known of an entry without loading it. */
export interface CacheEntry {
  /** The name of its directory: 64 hexadecimal digits. */
  readonly name: string;
  readonly directory: string;
  readonly description: EntryDescription | undefined;
  /** What its files take on disk. */
  readonly allocatedBytes: number;
  readonly modifiedAt: Date;
}

export interface EntryDescription {
  readonly key: string;
  readonly at: string;
  /** Of this package. */
  readonly version: string;
  readonly memoryBytes: number;
}

const NAME = /^[0-9a-f]{64}$/;
const MAX_DESCRIPTION_BYTES = 64 * 1024;

/** `${FORKLET_CACHE}/forklet/snapshots`, or where XDG says. */
export function cacheDirectory(): string {
  const { FORKLET_CACHE, XDG_CACHE_HOME } = process.env;
  // An empty variable is one that is not set, and XDG wants absolute paths.
  const xdg = XDG_CACHE_HOME && path.isAbsolute(XDG_CACHE_HOME) ? XDG_CACHE_HOME : undefined;
  const base = FORKLET_CACHE || xdg || path.join(homedir(), '.cache');
  return path.resolve(base, 'forklet', 'snapshots');
}

/**
 * Creates the cache if need be, and makes sure that nobody else can put anything there: a snapshot
 * is as good as a program.
 *
 * @throws {VmError} `ERR_VM_BAD_SNAPSHOT`, `ERR_VM_SYSTEM`.
 */
export async function openCache(): Promise<string> {
  const directory = cacheDirectory();
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const { uid, mode } = await stat(directory);
    const problem =
      uid !== process.geteuid?.()
        ? `belongs to user ${uid}`
        : (mode & 0o022) !== 0
          ? 'can be written to by others'
          : undefined;
    if (problem === undefined) return directory;
    throw new VmError({
      code: 'ERR_VM_BAD_SNAPSHOT',
      message:
        `The cache of snapshots ${directory} ${problem}, who could put any snapshot there: ` +
        'remove it, or set FORKLET_CACHE to a directory of your own',
    });
  } catch (cause) {
    if (cause instanceof VmError) throw cause;
    const { code, errno, syscall } = cause as NodeJS.ErrnoException;
    throw new VmError({
      code: 'ERR_VM_SYSTEM',
      message: `The cache of snapshots ${directory} cannot be used: ${code ?? String(cause)}`,
      ...(errno !== undefined && { errno }),
      ...(syscall !== undefined && { syscall }),
      cause,
    });
  }
}

/** Whether there is anything under that name. */
export async function entryExists(directory: string): Promise<boolean> {
  return await lstat(directory).then(
    () => true,
    () => false,
  );
}

export async function describeEntry(directory: string, entry: EntryDescription): Promise<void> {
  const draft = `${directory}.${randomBytes(8).toString('hex')}`;
  await writeFile(draft, JSON.stringify(entry), { mode: 0o600 });
  await rename(draft, `${directory}.json`);
}

/** All entries, by age. */
export async function listEntries(): Promise<CacheEntry[]> {
  const cache = cacheDirectory();
  const names = await readdir(cache).catch(() => []);
  const entries = await Promise.all(
    names.filter((name) => NAME.test(name)).map((name) => readEntry(cache, name)),
  );
  return entries
    .filter((entry) => entry !== undefined)
    .sort((a, b) => a.modifiedAt.getTime() - b.modifiedAt.getTime());
}

async function readEntry(cache: string, name: string): Promise<CacheEntry | undefined> {
  const directory = path.join(cache, name);
  try {
    const { mtime } = await stat(directory);
    const files = await readdir(directory);
    const sizes = await Promise.all(
      files.map(async (file) => (await lstat(path.join(directory, file))).blocks * 512),
    );
    const allocatedBytes = sizes.reduce((sum, size) => sum + size, 0);
    const description = await readDescription(`${directory}.json`);
    return { name, directory, description, allocatedBytes, modifiedAt: mtime };
  } catch {
    // Removed meanwhile.
    return undefined;
  }
}

async function readDescription(file: string): Promise<EntryDescription | undefined> {
  try {
    if ((await stat(file)).size > MAX_DESCRIPTION_BYTES) return undefined;
    const given = JSON.parse(await readFile(file, 'utf8')) as Partial<EntryDescription>;
    return {
      key: String(given.key),
      at: String(given.at),
      version: String(given.version),
      memoryBytes: Number(given.memoryBytes),
    };
  } catch {
    return undefined;
  }
}

/** Removes an entry in one step, so that nobody finds half of it. VMs that use it live on. */
export async function removeEntry(directory: string): Promise<void> {
  const grave = path.join(
    path.dirname(directory),
    `.removed-${path.basename(directory)}-${randomBytes(8).toString('hex')}`,
  );
  await rename(directory, grave);
  await unlink(`${directory}.json`).catch(() => {});
  await rm(grave, { recursive: true, force: true });
}
