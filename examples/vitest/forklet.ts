// A fixture for test suites that need throwaway machines: a VM is prepared once and kept in the
// cache of snapshots, and every test gets a fork of it, or the same VM put back to where it was.
//
// Copy this file, and write `const test = vmTest({ key, prepare })` in yours.

import diagnostics_channel from 'node:diagnostics_channel';

import { type DiagnosticsMessage, Snapshot, type SnapshotRecipe, type Vm } from 'forklet';
import { test as base } from 'vitest';

interface PerFile {
  /** What all tests of the file start from. */
  readonly snapshot: Snapshot;
  /** The VM behind `resetVm`. */
  readonly sharedVm: Vm;
}

interface PerTest {
  /** A VM of this test's own: a fork of the snapshot. Tests may run at once. */
  readonly vm: Vm;
  /** One VM for all tests, reset before each: cheaper still, for tests that run in turn. */
  readonly resetVm: Vm;
}

/** vitest's `test` with a VM. Fails the file if a test leaves a VM of its own open. */
export function vmTest(recipe: SnapshotRecipe) {
  return base.extend<{ $test: PerTest; $file: PerFile }>({
    snapshot: [
      // biome-ignore lint/correctness/noEmptyPattern: vitest reads the names of what a fixture needs
      async ({}, use) => {
        const open = new OpenVms();
        const snapshot = await Snapshot.ensure(recipe);
        try {
          await use(snapshot);
        } finally {
          await snapshot.close();
          open.expectNone();
        }
      },
      { scope: 'file' },
    ],
    sharedVm: [
      async ({ snapshot }, use) => {
        const vm = await snapshot.fork();
        try {
          await use(vm);
        } finally {
          await vm.close();
        }
      },
      { scope: 'file' },
    ],
    vm: async ({ snapshot }, use) => {
      const vm = await snapshot.fork();
      try {
        await use(vm);
      } finally {
        await vm.close();
      }
    },
    resetVm: async ({ sharedVm }, use) => {
      await sharedVm.reset();
      await use(sharedVm);
    },
  });
}

/** Which VMs were made and not closed, as the library's diagnostics tell. */
class OpenVms {
  readonly #ids = new Set<string>();
  readonly #made = (message: unknown): void => {
    const { vmId, outcome, result } = message as DiagnosticsMessage;
    if (outcome !== 'ok') return;
    const many = result?.['vmIds'];
    for (const id of Array.isArray(many) ? many : [vmId]) this.#ids.add(String(id));
  };
  readonly #closed = (message: unknown): void => {
    this.#ids.delete(String((message as DiagnosticsMessage).vmId));
  };

  constructor() {
    diagnostics_channel.subscribe('forklet:create', this.#made);
    diagnostics_channel.subscribe('forklet:fork', this.#made);
    diagnostics_channel.subscribe('forklet:close', this.#closed);
  }

  expectNone(): void {
    diagnostics_channel.unsubscribe('forklet:create', this.#made);
    diagnostics_channel.unsubscribe('forklet:fork', this.#made);
    diagnostics_channel.unsubscribe('forklet:close', this.#closed);
    if (this.#ids.size > 0) throw new Error(`VMs left open: ${[...this.#ids].join(', ')}`);
  }
}
