// A lock among processes that make the same entry of the cache. It saves work and nothing else:
// entries appear complete and at once, so that two makers would do no harm. That is why it can do
// with what Node has, a file that only one process creates: the file says who holds it, a holder
// that has died is seen by its process id, and one that this machine cannot look up (in another
// container, or on another machine that shares the directory) by a heartbeat that has stopped.

import { randomBytes } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { link, readFile, rename, stat, unlink, utimes, writeFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

/** How often a holder says that it is alive, and a waiter looks. */
const HEARTBEAT_MS = 5_000;
const POLL_MS = 100;

/** Silence after which a holder that cannot be looked up counts as dead. */
const SILENCE_MS = 30_000;

/** Enough to tell a process from all others that could have its id. */
interface Owner {
  readonly pid: number;
  /** `starttime` of proc(5), in clock ticks since boot */
  readonly started: string;
  /** Machine, boot and process namespace in which `pid` means something */
  readonly domain: string;
  readonly nonce: string;
}

function processStart(pid: number | 'self'): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name before it is in brackets and may contain anything.
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

function thisDomain(): string {
  try {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    return `${boot} ${readlinkSync('/proc/self/ns/pid')}`;
  } catch {
    // Nobody can be looked up then.
    return randomBytes(8).toString('hex');
  }
}

/** Holds the lock until `release()`. */
export class CacheLock {
  readonly #file: string;
  readonly #owner: Owner;
  readonly #heartbeat: NodeJS.Timeout;

  private constructor(file: string, owner: Owner) {
    this.#file = file;
    this.#owner = owner;
    this.#heartbeat = setInterval(() => {
      const now = new Date();
      utimes(file, now, now).catch(() => {});
    }, HEARTBEAT_MS).unref();
  }

  /** Takes the lock, or returns nothing when somebody else holds it. */
  static async tryTake(file: string): Promise<CacheLock | undefined> {
    const owner: Owner = {
      pid: process.pid,
      started: processStart('self') ?? '',
      domain: thisDomain(),
      nonce: randomBytes(8).toString('hex'),
    };
    // Made elsewhere and linked into place, so that nobody ever reads half of it.
    const draft = `${file}.${owner.nonce}`;
    await writeFile(draft, JSON.stringify(owner), { mode: 0o600, flag: 'wx' });
    try {
      await link(draft, file);
      return new CacheLock(file, owner);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      return undefined;
    } finally {
      await unlink(draft).catch(() => {});
    }
  }

  /** Resolves when the lock is free, or its holder is dead and has been put out of it. */
  static async untilFree(file: string, signal: AbortSignal): Promise<void> {
    let lastBeat = 0;
    let beatAt = performance.now();
    for (;;) {
      const owner = await readOwner(file);
      if (owner === undefined) return;
      const beat = (await stat(file).catch(() => undefined))?.mtimeMs ?? 0;
      if (beat !== lastBeat) {
        lastBeat = beat;
        beatAt = performance.now();
      }
      if (isDead(owner) || performance.now() - beatAt > SILENCE_MS) {
        await evict(file, owner);
        return;
      }
      await delay(POLL_MS, undefined, { signal });
    }
  }

  async release(): Promise<void> {
    clearInterval(this.#heartbeat);
    await evict(this.#file, this.#owner);
  }
}

async function readOwner(file: string): Promise<Owner | undefined> {
  try {
    const { pid, started, domain, nonce } = JSON.parse(await readFile(file, 'utf8')) as Owner;
    return { pid: Number(pid), started: String(started), domain: String(domain), nonce };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    // Not one of ours: its heartbeat has stopped as well.
    return { pid: 0, started: '', domain: '', nonce: '' };
  }
}

function isDead({ pid, started, domain }: Owner): boolean {
  return domain === thisDomain() && processStart(pid) !== started;
}

/** Removes the lock if it is that owner's. */
async function evict(file: string, owner: Owner): Promise<void> {
  const current = await readOwner(file);
  if (current === undefined || current.nonce !== owner.nonce) return;
  // Moved before it is removed: of several that do this only one succeeds.
  const grave = `${file}.${randomBytes(8).toString('hex')}`;
  await rename(file, grave).then(
    () => unlink(grave),
    () => {},
  );
}
