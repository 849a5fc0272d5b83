import { afterAll, beforeAll } from 'vitest';

import { type Snapshot, type SnapshotOptions, Vm, type VmOptions } from '../../lib/index.js';

/** One VM and one snapshot of it for a whole file: a boot takes seconds where it is emulated. */
export function sharedSnapshot(
  prepare: (vm: Vm) => Promise<void> = async () => {},
  options: { vm?: VmOptions; snapshot?: SnapshotOptions } = {},
): { readonly vm: Vm; readonly snapshot: Snapshot } {
  let vm: Vm | undefined;
  let snapshot: Snapshot | undefined;
  beforeAll(async () => {
    vm = await Vm.create({ bootTimeoutMs: 115_000, ...options.vm });
    await prepare(vm);
    snapshot = await vm.snapshot({ timeoutMs: 60_000, ...options.snapshot });
  });
  afterAll(async () => {
    await snapshot?.close();
    await vm?.close();
  });
  return {
    get vm(): Vm {
      if (vm === undefined) throw new Error('The VM did not boot');
      return vm;
    },
    get snapshot(): Snapshot {
      if (snapshot === undefined) throw new Error('The VM was not frozen');
      return snapshot;
    },
  };
}
