import { resolve } from 'node:path';

import { observe, observed } from './internal/base/diagnostics.js';
import { type ForkParent, forkMany, forkOne } from './internal/snapshot/fork.js';
import { checkForkLimits } from './internal/snapshot/fork-limits.js';
import { checkForkCount, checkLoad, checkSave } from './internal/snapshot/fork-options.js';
import { ensureSnapshot } from './internal/snapshot/snapshot-cache.js';
import { closedSnapshot, type SnapshotCore } from './internal/snapshot/snapshot-core.js';
import { loadSnapshot, saveSnapshot } from './internal/snapshot/snapshot-files.js';
import type { VmOptions } from './options.js';
import type { Vm } from './vm.js';

/** Options of `vm.snapshot()`. */
export interface SnapshotOptions {
  /**
   * Where the guest stands still while it is frozen, and so where its forks begin.
   *
   * - `'agent'`: in the guest agent, as soon as it gets there.
   * - `'program'`: in the program of the guest that calls `forklet_park()`, as soon as it does.
   *   Its forks answer `vm.parked.call()` without anything else running before.
   *
   * @defaultValue `'agent'`
   */
  readonly at?: 'agent' | 'program';
  /** A name for people, at most 1024 characters; saved with the snapshot. */
  readonly label?: string;
  /**
   * Longest time until the guest stands still, in milliseconds, 1 to 2^31 - 1. The VM goes on if
   * it does not.
   *
   * @defaultValue 30 000
   */
  readonly timeoutMs?: number;
  /** Gives the snapshot up; the VM goes on. */
  readonly signal?: AbortSignal;
}

/** Options of `fork()` and `forkMany()`. */
export interface ForkOptions {
  /**
   * When the fork executes its first instruction.
   *
   * - `'now'`: right after the promise has resolved.
   * - `'on-demand'`: with the first work, or when somebody asks for `vm.ready`. Until then it costs
   *   neither processor time nor memory of its own.
   *
   * @defaultValue `'now'`
   */
  readonly start?: 'now' | 'on-demand';
  /**
   * Whether the fork may be one that was made ahead of need, see {@link Snapshot.prewarm}.
   * `'require'` fails when there is none.
   *
   * @defaultValue `'use'`
   */
  readonly pool?: 'use' | 'never' | 'require';
  /**
   * Who makes the fork of a snapshot `at: 'program'` unique.
   *
   * - `'agent'`: the guest's kernel and agent, before the program runs on.
   * - `'program'`: the program itself, from the entropy that comes with each call. Calls then go
   *   to it at once; the agent does its part before any other work.
   *
   * @defaultValue `'agent'`
   */
  readonly unique?: 'agent' | 'program';
  /**
   * A first call of the parked program, as by `vm.parked.call(input)`, started at once: its answer
   * is {@link ParkedProgram.first}. At most 61 184 bytes.
   */
  readonly input?: Uint8Array;
  /** Host name of the fork, as in {@link VmOptions}. @defaultValue the parent's */
  readonly hostname?: string;
  /**
   * Longest time until the fork is there, and, from its start on, until it has confirmed that it
   * is unique, in milliseconds, 1 to 2^31 - 1.
   *
   * @defaultValue 60 000
   */
  readonly timeoutMs?: number;
  /** Aborts forking. It has no effect on a VM that was handed over. */
  readonly signal?: AbortSignal;
}

/** Options of `snapshot.save()`. */
export interface SaveOptions {
  /** Whether a snapshot that is there is replaced. @defaultValue `false` */
  readonly overwrite?: boolean;
  /** Aborts saving; the directory is then as it was. */
  readonly signal?: AbortSignal;
}

/** Options of `Snapshot.load()`. */
export interface LoadOptions {
  /** Whether every byte is checked first, which reads all of the files. @defaultValue `false` */
  readonly verify?: boolean;
  /** Aborts loading. */
  readonly signal?: AbortSignal;
}

/** Where `Snapshot.ensure()` is. */
export interface SnapshotProgress {
  /**
   * - `'wait'`: another process makes the same snapshot.
   * - `'boot'`, `'prepare'`, `'snapshot'`, `'save'`: it is being made.
   * - `'load'`: it is there.
   */
  readonly stage: 'wait' | 'boot' | 'prepare' | 'snapshot' | 'save' | 'load';
  /** Since the call, in milliseconds. */
  readonly elapsedMs: number;
}

/** How a snapshot is made that is kept in the cache; see {@link Snapshot.ensure}. */
export interface SnapshotRecipe {
  /**
   * Your name for what `prepare` does, at most 1024 characters. A function's text is not looked at:
   * give another key when it does something else.
   */
  readonly key: string;
  /** What the VM is booted with. */
  readonly options?: Omit<VmOptions, 'signal'>;
  /** Makes the VM what it is to be when it is frozen. What it starts may go on running. */
  readonly prepare?: (vm: Vm) => void | Promise<void>;
  /** Where it is frozen; see {@link SnapshotOptions}. @defaultValue `'agent'` */
  readonly at?: 'agent' | 'program';
  /** Told at the beginning of each stage. */
  readonly onProgress?: (progress: SnapshotProgress) => void;
  /** Aborts. What others wait for as well goes on. */
  readonly signal?: AbortSignal;
}

/** One handle's share in a frozen VM: what is left when the handle was collected. */
class Lease {
  readonly core: SnapshotCore;
  /** How many forks are kept ready */
  prewarmed = 0;
  #closing: Promise<void> | undefined;

  constructor(core: SnapshotCore) {
    this.core = core;
  }

  get closed(): boolean {
    return this.#closing !== undefined;
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    // VMs that came from it keep the snapshot, but need nothing that is ready.
    if (this.prewarmed > 0) await this.core.prewarm(0);
    await this.core.release();
  }
}

const abandoned = new FinalizationRegistry<Lease>((lease) => {
  if (lease.closed) return;
  process.emitWarning(
    `Snapshot ${lease.core.id} was garbage-collected without close(), and has been closed. ` +
      'Close snapshots that you are done with: a collected one holds its memory until then.',
    { type: 'ForkletWarning', code: 'FORKLET_SNAPSHOT_NOT_CLOSED' },
  );
  lease.close().catch((error: unknown) => {
    process.emitWarning(error as Error);
  });
});

/**
 * A frozen VM: its processors, memory and devices at one moment. It never runs itself; VMs that are
 * forked from it go on where it was frozen, each with a copy of its own, of which only the pages
 * exist that it writes.
 *
 * Release it with {@link close} or `await using`. VMs that were forked from it live on.
 */
export class Snapshot implements AsyncDisposable {
  readonly #lease: Lease;

  private constructor(core: SnapshotCore) {
    this.#lease = new Lease(core);
    abandoned.register(this, this.#lease, this);
  }

  /** @internal Takes over one hold on it. */
  static of(core: SnapshotCore): Snapshot {
    return new Snapshot(core);
  }

  /** @internal @throws {VmError} `ERR_VM_CLOSED`. */
  static coreOf(snapshot: Snapshot): SnapshotCore {
    return snapshot.#open();
  }

  /**
   * Loads a snapshot that was saved. Nothing of the guest's memory is read: forks read pages from
   * the files as they touch them, so these must not change, and must stay until the last fork is
   * closed. A snapshot is as good as a program: load only what you trust.
   *
   * @throws {TypeError} `directory` is not a path; unknown option, or one of a wrong type.
   * @throws {VmError} `ERR_VM_BAD_SNAPSHOT`: missing, damaged, of another version or for another
   *   processor, or writable by others. `ERR_VM_KVM_UNAVAILABLE`: see `doctor()`.
   *   `ERR_VM_NO_MEMORY`, `ERR_VM_KVM`, `ERR_VM_SYSTEM`: see `syscall` and `errno`.
   * @throws {AbortError} `signal` was aborted.
   */
  static async load(directory: string, options?: LoadOptions): Promise<Snapshot> {
    const checked = checkLoad(directory, options);
    const path = resolve(checked.directory);
    const observation = observe('load', { snapshotId: undefined, parentId: null }, 'load', () => ({
      directory: path,
      verify: checked.verify,
    }));
    return await observed(observation, async () => {
      const core = await loadSnapshot({ ...checked, directory: path });
      return { value: Snapshot.of(core), result: { snapshotId: core.id } };
    });
  }

  /**
   * Loads a snapshot from the cache, after making it if it is not there: boots a VM, lets `prepare`
   * do its work, freezes and saves it. Callers in this process and in others that want the same
   * wait for one of them to make it. An entry that is damaged is made again.
   *
   * What is the same is decided by `key`, `options`, `at`, the contents of kernel, root and agent,
   * the version of this package and the features of the processor. The cache is
   * `${FORKLET_CACHE}/forklet/snapshots`, or else under `${XDG_CACHE_HOME}` or `~/.cache`.
   *
   * @throws {TypeError} unknown field, or one of a wrong type.
   * @throws {RangeError} an option out of range.
   * @throws {VmError} what `Vm.create()`, `vm.snapshot()`, `save()` and `load()` fail with, and
   *   `ERR_VM_BAD_SNAPSHOT` for a cache that belongs to somebody else or that others can write to.
   * @throws what `prepare` threw; nothing is kept then.
   * @throws {AbortError} `signal` was aborted.
   */
  static async ensure(recipe: SnapshotRecipe): Promise<Snapshot> {
    return Snapshot.of((await ensureSnapshot(recipe)).core);
  }

  /** Names the snapshot in diagnostics; a saved one keeps it. */
  get id(): string {
    return this.#lease.core.id;
  }

  /** The VM that was frozen. */
  get parentId(): string | null {
    return this.#lease.core.parentId;
  }

  /** The name that it was given. */
  get label(): string | undefined {
    return this.#lease.core.label;
  }

  /** Size of the guest's memory, in bytes. */
  get memoryBytes(): number {
    return this.#lease.core.info.memoryBytes;
  }

  /**
   * Makes a VM that goes on where this snapshot was frozen. Resolves when it is there, before its
   * first instruction; work waits until it is unique by itself.
   *
   * On failure nothing of it remains.
   *
   * @returns a VM, owned by the caller.
   * @throws {TypeError} unknown option, or one of a wrong type.
   * @throws {RangeError} `timeoutMs` or the length of `input` out of range.
   * @throws {VmError} `ERR_VM_CLOSED`: of the snapshot. `ERR_VM_TIMEOUT`. `ERR_VM_LIMIT`,
   *   `ERR_VM_NO_MEMORY`, `ERR_VM_KVM`, `ERR_VM_SYSTEM`: see the message, `syscall` and `errno`.
   * @throws {AbortError} `signal` was aborted.
   */
  fork(options?: ForkOptions): Promise<Vm> {
    return forkOne(this.#parent(), options);
  }

  /**
   * Makes `count` VMs: all of them or, on failure, none. Looks first whether they fit into the
   * limits of host and process.
   *
   * @param count - 1 to 100 000.
   * @throws {RangeError} `count` out of range.
   * @throws what {@link fork} throws; `ERR_VM_LIMIT` names the limit and its figures.
   */
  forkMany(count: number, options?: ForkOptions): Promise<Vm[]> {
    return forkMany(this.#parent(), count, options);
  }

  /**
   * Writes the snapshot to a directory, which is complete when this resolves, and otherwise as it
   * was before. The guest's memory is in there, with every secret that it holds: keep it safe.
   *
   * @throws {TypeError} `directory` is not a path; unknown option, or one of a wrong type.
   * @throws {VmError} `ERR_VM_EXISTS`: there is something, and `overwrite` is not set.
   *   `ERR_VM_CLOSED`. `ERR_VM_SYSTEM`: see `syscall` and `errno`.
   * @throws {AbortError} `signal` was aborted.
   */
  async save(directory: string, options?: SaveOptions): Promise<void> {
    const checked = checkSave(directory, options);
    const path = resolve(checked.directory);
    const core = this.#open();
    const observation = observe('save', this.#subject, 'save', () => ({
      directory: path,
      overwrite: checked.overwrite,
    }));
    await observed(observation, async () => {
      await saveSnapshot(core, { ...checked, directory: path });
      return { value: undefined };
    });
  }

  /**
   * Keeps so many forks ready, restored and not entered, and resolves when they are there for the
   * first time: a fork that takes one costs little more than its first instruction. What was taken
   * is made again in the background.
   *
   * @param count - 0 to 100 000; 0 releases those that are there.
   * @throws {RangeError} `count` out of range.
   * @throws {VmError} `ERR_VM_CLOSED`, or what {@link forkMany} fails with.
   */
  async prewarm(count: number): Promise<void> {
    const checked = checkForkCount('snapshot.prewarm()', count, 0);
    const core = this.#open();
    const observation = observe('prewarm', this.#subject, 'prewarm', () => ({ count }));
    await observed(observation, async () => {
      const more = checked - this.#lease.prewarmed;
      if (more > 0) await checkForkLimits(more, core.info.vcpus);
      this.#open();
      this.#lease.prewarmed = checked;
      await core.prewarm(checked);
      return { value: undefined };
    });
  }

  /**
   * Releases the snapshot and what was made ahead of need from it. VMs that were forked from it
   * live on, can still be reset to it, and keep its memory until they are closed. May be called
   * more than once.
   */
  close(): Promise<void> {
    if (this.#lease.closed) return this.#lease.close();
    abandoned.unregister(this);
    const observation = observe('close', this.#subject, 'close', () => ({}));
    const closing = this.#lease.close();
    closing.then(
      () => observation.succeed(),
      (error: unknown) => observation.fail(error),
    );
    return closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  get #subject(): { snapshotId: string; parentId: string | null } {
    return { snapshotId: this.id, parentId: this.parentId };
  }

  #open(): SnapshotCore {
    if (this.#lease.closed) throw closedSnapshot();
    return this.#lease.core;
  }

  #parent(): ForkParent {
    return {
      id: this.id,
      kind: 'snapshot',
      vcpus: this.#lease.core.info.vcpus,
      hold: () => {
        const core = this.#open();
        core.acquire();
        return core;
      },
    };
  }
}
