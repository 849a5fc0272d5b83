import { defineConfig } from 'vitest/config';

const jsonFile = process.env['FORKLET_TEST_JSON'];

export default defineConfig({
  cacheDir: '../node_modules/.vite',
  test: {
    root: import.meta.dirname,
    include: ['*.test.ts', 'vitest/*.test.ts'],
    fileParallelism: false,
    // What continuous integration counts.
    reporters: [
      'default',
      ...(jsonFile ? [['json', { outputFile: jsonFile }] as ['json', { outputFile: string }]] : []),
    ],
    // The first run boots a VM and prepares it, which takes seconds where KVM emulates the guest's
    // kernel; later runs find the snapshot in the cache.
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
