import { doctor } from '../../lib/index.js';
import { hasKvm } from './has-kvm.js';

/**
 * Whether KVM runs the guest's kernel on the processor. Where it emulates it (quirk
 * `emulated-supervisor`), no kernel but ours runs user programs.
 */
export const hasHardwareKvm: boolean =
  hasKvm && !(await doctor()).quirks.includes('emulated-supervisor');
