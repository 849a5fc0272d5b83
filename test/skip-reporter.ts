import type { Reporter, TestModule } from 'vitest/node';
import { hasKvm } from './helpers/has-kvm.js';

/**
 * Says which tests were skipped, and whether the lack of KVM is a reason; with `REQUIRE_KVM=1`
 * (continuous integration sets it) a skip fails the run, so that a green run has run everything.
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

    const reason = hasKvm ? '' : ' (/dev/kvm cannot be opened here)';
    console.error(`${skipped.length} tests skipped${reason}:\n  ${skipped.join('\n  ')}`);
    if (process.env['REQUIRE_KVM'] === '1') {
      console.error('REQUIRE_KVM=1: a skipped test is a failure');
      process.exitCode = 1;
    }
  }
}
