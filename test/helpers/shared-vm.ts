import { afterAll, beforeAll } from 'vitest';

import { Vm, type VmOptions } from '../../lib/index.js';
import { patience } from './patience.js';

/** One VM for a whole file: a boot takes seconds where guest kernel code is emulated. */
export function sharedVm(options: VmOptions = {}): { readonly vm: Vm } {
  let vm: Vm | undefined;
  beforeAll(async () => {
    // Twice the default: builds may run beside the tests.
    vm = await Vm.create({ bootTimeoutMs: patience(115_000), ...options });
  });
  afterAll(async () => {
    await vm?.close();
  });
  return {
    get vm(): Vm {
      if (vm === undefined) throw new Error('The VM did not boot');
      return vm;
    },
  };
}
