import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { describe, expect, test } from 'vitest';

import { hasHardwareKvm } from '../helpers/hardware-kvm.js';

const example = fileURLToPath(new URL('../../examples/parked-python.mjs', import.meta.url));

describe.runIf(hasHardwareKvm)('examples/parked-python.mjs', () => {
  test('answers in forks of one warm interpreter', { timeout: 600_000 }, async () => {
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [example]);

    expect(stderr).toBe('');
    expect(stdout).toBe('squares: 9 16 25 36\ndifferent random numbers: 4\n');
  });
});
