// `Snapshot.ensure()`: makes a snapshot once for all who want the same.

import path from 'node:path';

import { errorCode } from '../../errors.js';
import { type CheckedVmOptions, checkVmOptions, type VmOptions } from '../../options.js';
import type { SnapshotProgress, SnapshotRecipe } from '../../snapshot.js';
import { Vm } from '../../vm.js';
import { observe, observed } from '../base/diagnostics.js';
import { checkOptions, checkSignal, wrongType } from '../base/validate.js';
import { Wait } from '../base/wait.js';
import { describeEntry, entryExists, openCache } from './cache-entries.js';
import { packageVersion, snapshotIdentity } from './cache-identity.js';
import { CacheLock } from './cache-lock.js';
import { checkLabel, checkPlace } from './fork-options.js';
import type { SnapshotCore } from './snapshot-core.js';
import { loadSnapshot } from './snapshot-files.js';

/** What a program may take from the end of `prepare` to its park. */
const FREEZE_TIMEOUT_MS = 300_000;

type Stage = SnapshotProgress['stage'];

interface CheckedRecipe {
  readonly key: string;
  readonly at: 'agent' | 'program';
  readonly given: Omit<VmOptions, 'signal'> | undefined;
  readonly options: CheckedVmOptions;
  readonly prepare: ((vm: Vm) => void | Promise<void>) | undefined;
  readonly onProgress: ((progress: SnapshotProgress) => void) | undefined;
  readonly signal: AbortSignal | undefined;
}

function checkFunction<T>(option: string, value: T | undefined): T | undefined {
  if (value !== undefined && typeof value !== 'function') {
    throw wrongType(option, 'a function', value);
  }
  return value;
}

function checkRecipe(recipe: SnapshotRecipe): CheckedRecipe {
  const given = checkOptions('Snapshot.ensure()', recipe ?? null, [
    'key',
    'options',
    'prepare',
    'at',
    'onProgress',
    'signal',
  ]);
  const key = checkLabel('key', given.key);
  if (key === '') throw new TypeError('Option "key" must not be empty');
  if (given.options !== undefined && 'signal' in given.options) {
    throw new TypeError('Option "signal" belongs beside the options of Snapshot.ensure()');
  }
  return {
    key,
    at: checkPlace(given.at),
    given: given.options,
    options: checkVmOptions(given.options),
    prepare: checkFunction('prepare', given.prepare),
    onProgress: checkFunction('onProgress', given.onProgress),
    signal: given.signal === undefined ? undefined : checkSignal('signal', given.signal),
  };
}

export interface EnsuredSnapshot {
  /** Held by the caller. */
  readonly core: SnapshotCore;
  /** Where it is kept. */
  readonly directory: string;
}

/** The snapshot of a recipe, from the cache if it is there. */
export async function ensureSnapshot(recipe: SnapshotRecipe): Promise<EnsuredSnapshot> {
  const startedAt = performance.now();
  const checked = checkRecipe(recipe);
  const { key, at, options, onProgress, signal } = checked;
  const report = (stage: Stage): void => {
    if (onProgress === undefined) return;
    const progress = { stage, elapsedMs: performance.now() - startedAt };
    // What it throws is the caller's own uncaught exception and fails nobody else's snapshot.
    process.nextTick(() => onProgress(progress));
  };
  const wait = new Wait({ signal });
  const subject = { snapshotId: undefined, parentId: null };
  const observation = observe('ensure', subject, 'ensure', () => ({ key, at }));
  return await observed(observation, async () => {
    try {
      const cache = await wait.race(openCache());
      const identity = await wait.race(snapshotIdentity(checked, { ...options, signal }));
      const directory = path.join(cache, identity);
      let core = await loadEntry(directory, signal);
      const made = core === undefined;
      if (core === undefined) {
        await Build.join(directory, checked, report, wait);
        report('load');
        core = await loadSnapshot({ directory, verify: false, signal });
      } else {
        report('load');
      }
      return { value: { core, directory }, result: { snapshotId: core.id, made } };
    } finally {
      wait.end();
    }
  });
}

/** Loads an entry; nothing when there is none, or one that is of no use. */
async function loadEntry(
  directory: string,
  signal: AbortSignal | undefined,
): Promise<SnapshotCore | undefined> {
  if (!(await entryExists(directory))) return undefined;
  try {
    return await loadSnapshot({ directory, verify: false, signal });
  } catch (error) {
    if (errorCode(error) === 'ERR_VM_BAD_SNAPSHOT') return undefined;
    throw error;
  }
}

async function isUsable(directory: string, signal: AbortSignal): Promise<boolean> {
  const core = await loadEntry(directory, signal);
  await core?.release();
  return core !== undefined;
}

/** One entry being made, for everybody in this process who waits for it. */
class Build {
  static readonly #running = new Map<string, Build>();

  readonly #directory: string;
  readonly #recipe: CheckedRecipe;
  readonly #abort = new AbortController();
  readonly #reports = new Set<(stage: Stage) => void>();
  readonly #done: Promise<void>;
  #stage: Stage | undefined;

  /** Waits until the entry is there; makes it unless somebody does. */
  static async join(
    directory: string,
    recipe: CheckedRecipe,
    report: (stage: Stage) => void,
    wait: Wait,
  ): Promise<void> {
    let build = Build.#running.get(directory);
    // One that nobody wants any more is on its way out.
    while (build?.unwanted === true) {
      await wait.race(build.#done.catch(() => {}));
      build = Build.#running.get(directory);
    }
    wait.check();
    if (build === undefined) {
      build = new Build(directory, recipe);
      Build.#running.set(directory, build);
    }
    await build.#follow(report, wait);
  }

  private constructor(directory: string, recipe: CheckedRecipe) {
    this.#directory = directory;
    this.#recipe = recipe;
    this.#done = this.#run().finally(() => Build.#running.delete(directory));
    this.#done.catch(() => {});
  }

  get unwanted(): boolean {
    return this.#abort.signal.aborted;
  }

  async #follow(report: (stage: Stage) => void, wait: Wait): Promise<void> {
    this.#reports.add(report);
    if (this.#stage !== undefined) report(this.#stage);
    try {
      await wait.race(this.#done);
    } finally {
      this.#reports.delete(report);
      if (this.#reports.size === 0) {
        this.#abort.abort();
        // The last one to leave waits until nothing is left of it.
        await this.#done.catch(() => {});
      }
    }
  }

  #enter(stage: Stage): void {
    this.#stage = stage;
    for (const report of this.#reports) report(stage);
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    const file = `${this.#directory}.lock`;
    for (;;) {
      const lock = await CacheLock.tryTake(file);
      if (lock === undefined) {
        this.#enter('wait');
        await CacheLock.untilFree(file, signal);
        if (await isUsable(this.#directory, signal)) return;
        continue;
      }
      try {
        // Somebody may have been quicker between the look and the lock.
        if (!(await isUsable(this.#directory, signal))) await this.#make(signal);
        return;
      } finally {
        await lock.release();
      }
    }
  }

  async #make(signal: AbortSignal): Promise<void> {
    const { key, at, given, options, prepare } = this.#recipe;
    this.#enter('boot');
    const vm = await Vm.create({ ...given, signal });
    const wait = new Wait({ signal });
    try {
      this.#enter('prepare');
      await wait.race(Promise.resolve(prepare?.(vm)));
      this.#enter('snapshot');
      const snapshot = await vm.snapshot({ at, label: key, timeoutMs: FREEZE_TIMEOUT_MS, signal });
      try {
        this.#enter('save');
        await snapshot.save(this.#directory, { overwrite: true, signal });
      } finally {
        await snapshot.close();
      }
      const { memoryBytes } = options;
      const version = packageVersion();
      await describeEntry(this.#directory, { key, at, version, memoryBytes });
    } finally {
      wait.end();
      await vm.close();
    }
  }
}
