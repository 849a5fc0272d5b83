import { accessSync, constants } from 'node:fs';
import type { Reporter, TestModule } from 'vitest/node';

/**
 * Says which tests were skipped and why they may have been; with `REQUIRE_KVM=1` (continuous
 * integration sets it) a skip fails the run, so that a green run has run everything.
 */
export class SkipReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const skipped: string[] = [];
    for (const module of modules) {
      for (const test of module.children.allTests('skipped')) {
        skipped.push(`${module.relativeModuleId} > ${test.fullName}`);
      }
    }
    if (skipped.length === 0) return;

    const kvm = openable('/dev/kvm') ? '' : ' (/dev/kvm cannot be opened here)';
    console.error(`${skipped.length} tests skipped${kvm}:\n  ${skipped.join('\n  ')}`);
    if (process.env['REQUIRE_KVM'] === '1') {
      console.error('REQUIRE_KVM=1: a skipped test is a failure');
      process.exitCode = 1;
    }
  }
}

function openable(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
