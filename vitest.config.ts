import { defineConfig } from 'vitest/config';
import { patience, slowdown } from './test/helpers/patience.js';
import { SkipReporter } from './test/skip-reporter.js';

// No retries anywhere: a test that fails once has failed. Pool `forks`, so that a crash in the
// addon costs one file and not the run; where starting Node takes seconds, one for all files.
const base = {
  pool: 'forks',
  ...(slowdown > 1 && { isolate: false, maxWorkers: 1 }),
  retry: 0,
  environment: 'node',
} as const;

// A boot takes 10 to 15 s where guest kernel code is emulated, and each command some tenths of a
// second: the limits below are for that lane with a busy machine, not for hardware.
const kvm = {
  ...base,
  fileParallelism: false,
  testTimeout: patience(120_000),
  hookTimeout: patience(120_000),
  teardownTimeout: patience(30_000),
} as const;

const jsonFile = process.env['FORKLET_TEST_JSON'];

export default defineConfig({
  test: {
    reporters: [
      'default',
      new SkipReporter(),
      ...(jsonFile ? [['json', { outputFile: jsonFile }] as ['json', { outputFile: string }]] : []),
    ],
    projects: [
      {
        test: {
          ...base,
          name: 'unit',
          include: ['test/unit/**/*.test.ts'],
          testTimeout: patience(60_000),
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          ...kvm,
          name: 'kvm',
          include: ['test/kvm/**/*.test.ts'],
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          ...kvm,
          name: 'lifecycle',
          include: ['test/lifecycle/**/*.test.ts'],
          sequence: { groupOrder: 2 },
        },
      },
      // What our hosts without VMX and SVM cannot run at all; the svm lane can.
      {
        test: {
          ...kvm,
          name: 'hardware',
          include: ['test/hardware/**/*.test.ts'],
          sequence: { groupOrder: 3 },
        },
      },
      {
        test: {
          ...kvm,
          name: 'package',
          include: ['test/package/**/*.test.ts'],
          testTimeout: patience(300_000),
          hookTimeout: patience(300_000),
          sequence: { groupOrder: 4 },
        },
      },
    ],
  },
});
