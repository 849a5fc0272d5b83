import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';

import { Snapshot, type Vm } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { type ProcessCounts, settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

/** How long after an operation has begun it is interfered with; undefined is in the same turn. */
const MOMENTS = [undefined, 0, 1, 2, 3, 5, 8, 12, 20];

/** More than pass between the call of `snapshot()` and the core's part of it. */
const MICROTASKS = 24;

async function wait(moment: number | undefined): Promise<void> {
  if (moment !== undefined) await delay(moment);
}

type Closable = { close(): Promise<void> };

/** How an operation ended: 'done', after what it made was closed, or the code of its error. */
async function outcomeOf(
  operation: Promise<Closable | readonly Closable[] | undefined>,
): Promise<string> {
  try {
    const made = await operation;
    const all = made === undefined || 'close' in made ? [made] : made;
    await Promise.all(all.map((one) => one?.close()));
    return 'done';
  } catch (error) {
    return outcomeOfError(error as { code?: string });
  }
}

describe.runIf(hasKvm)('at any moment', () => {
  let root: string;
  let before: ProcessCounts;
  const shared = sharedSnapshot();

  beforeAll(async () => {
    root = mkdtempSync(path.join(tmpdir(), 'forklet-races-'));
    // What the process keeps from the first two on is not a leak.
    for (const fork of await shared.snapshot.forkMany(2)) await fork.close();
  });

  beforeEach(async () => {
    before = await settledCounts();
  });

  afterAll(() => {
    rmSync(root, { recursive: true, force: true });
  });

  const save = async (snapshot: Snapshot, signal?: AbortSignal): Promise<undefined> => {
    const options = { overwrite: true, ...(signal && { signal }) };
    await snapshot.save(path.join(root, 'saved'), options);
    return undefined;
  };

  const operations: Record<string, (vm: Vm) => Promise<Closable | undefined>> = {
    'snapshot()': (vm) => vm.snapshot(),
    'snapshot() of a program that never parks': (vm) => vm.snapshot({ at: 'program' }),
    'fork()': (vm) => vm.fork(),
    'fork() of a fork, on demand': (vm) => vm.fork({ start: 'on-demand' }),
    'reset()': (vm) => vm.reset().then(() => undefined),
  };

  for (const [name, operation] of Object.entries(operations)) {
    test(`a VM can be closed during ${name}`, async () => {
      for (const moment of MOMENTS) {
        const vm = await shared.snapshot.fork();
        await vm.ready;
        const outcome = outcomeOf(operation(vm));
        await wait(moment);
        await vm.close();

        expect(['done', 'ERR_VM_CLOSED']).toContain(await outcome);
        expect(vm.state).toBe('closed');
      }
      expect(await settledCounts()).toEqual(before);
    });
  }

  // A cancellation that came before the thread that freezes had begun was lost, and the VM was waited
  // for until the freeze had timed out.
  test('a VM that is closed in the turn in which it is told to park is not waited for', async () => {
    for (let turns = 0; turns < MICROTASKS; turns++) {
      const vm = await shared.snapshot.fork();
      await vm.ready;
      const begin = performance.now();
      const outcome = outcomeOf(vm.snapshot({ timeoutMs: patience(60_000) }));
      for (let turn = 0; turn < turns; turn++) await Promise.resolve();
      await vm.close();

      expect(await outcome).toBe('ERR_VM_CLOSED');
      expect(performance.now() - begin).toBeLessThan(patience(30_000));
    }
    expect(await settledCounts()).toEqual(before);
  });

  test('a VM that has not been made unique can be closed', async () => {
    for (const moment of MOMENTS) {
      const vm = await shared.snapshot.fork();
      const work = vm.fs.readFile('/etc/passwd').then(() => 'done', outcomeOfError);
      await wait(moment);
      await vm.close();

      expect(['done', 'ERR_VM_CLOSED']).toContain(await work);
    }
    expect(await settledCounts()).toEqual(before);
  });

  test('a snapshot and its VM can be closed while it is saved', async () => {
    for (const moment of MOMENTS) {
      const vm = await shared.snapshot.fork();
      const snapshot = await vm.snapshot();
      const outcome = outcomeOf(save(snapshot));
      await wait(moment);
      await Promise.all([vm.close(), snapshot.close()]);

      expect(['done', 'ERR_VM_CLOSED']).toContain(await outcome);
    }
    // Either all of it is there, or nothing, and nothing is left half-way.
    expect(readdirSync(root).filter((name) => name !== 'saved')).toEqual([]);
    expect(await settledCounts()).toEqual(before);
  });

  const abortable: Record<string, (vm: Vm, signal: AbortSignal) => ReturnType<typeof many>> = {
    'snapshot()': (vm, signal) => vm.snapshot({ signal }),
    'fork() of a VM': (vm, signal) => vm.fork({ signal }),
    'forkMany() of a VM': (vm, signal) => many(vm, signal),
    'fork()': (_vm, signal) => shared.snapshot.fork({ signal, pool: 'never' }),
    'forkMany()': (_vm, signal) => many(shared.snapshot, signal),
    'save()': (_vm, signal) => save(shared.snapshot, signal),
  };

  for (const [name, operation] of Object.entries(abortable)) {
    test(`${name} can be aborted, and the VM goes on`, async () => {
      const vm = await shared.snapshot.fork();
      for (const moment of MOMENTS) {
        const abort = new AbortController();
        const outcome = outcomeOf(operation(vm, abort.signal));
        await wait(moment);
        abort.abort();

        expect(['done', 'ABORT_ERR']).toContain(await outcome);
        expect(await vm.fs.readFile('/proc/sys/kernel/ostype', 'utf8')).toBe('Linux\n');
      }
      await vm.close();
      expect(await settledCounts()).toEqual(before);
    });
  }

  test('load() can be aborted', async () => {
    await save(shared.snapshot);
    for (const moment of MOMENTS) {
      const abort = new AbortController();
      const { signal } = abort;
      const loading = Snapshot.load(path.join(root, 'saved'), { signal, verify: true });
      const outcome = outcomeOf(loading);
      await wait(moment);
      abort.abort();

      expect(['done', 'ABORT_ERR']).toContain(await outcome);
    }
    expect(await settledCounts()).toEqual(before);
  });

  test('a snapshot can be closed with live forks and while more are made', async () => {
    const vm = await shared.snapshot.fork();
    for (const moment of MOMENTS) {
      const snapshot = await vm.snapshot();
      await snapshot.prewarm(1);
      const live = await snapshot.fork();
      const outcome = outcomeOf(many(snapshot));
      await wait(moment);
      await snapshot.close();

      expect(['done', 'ERR_VM_CLOSED']).toContain(await outcome);
      expect(await live.fs.readFile('/proc/sys/kernel/ostype', 'utf8')).toBe('Linux\n');
      await live.close();
    }
    await vm.close();
    expect(await settledCounts()).toEqual(before);
  });
});

function many(
  source: Vm | Snapshot,
  signal?: AbortSignal,
): Promise<Closable | readonly Closable[] | undefined> {
  return source.forkMany(4, { pool: 'never', ...(signal && { signal }) });
}

function outcomeOfError(error: { code?: string }): string {
  return error.code ?? String(error);
}
