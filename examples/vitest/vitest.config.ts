import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    root: import.meta.dirname,
    include: ['*.test.ts'],
    // The first run boots a VM and prepares it, which takes seconds where KVM emulates the guest's
    // kernel; later runs find the snapshot in the cache.
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
