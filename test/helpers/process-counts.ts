import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

/** What a process holds that a VM could leave behind. */
export interface ProcessCounts {
  readonly threads: number;
  readonly descriptors: number;
  /** Mappings of guest memory and of vCPUs; V8's own come and go as it likes. */
  readonly mappings: number;
}

export function countProcess(): ProcessCounts {
  return {
    threads: readdirSync('/proc/self/task').length,
    descriptors: readdirSync('/proc/self/fd').length,
    mappings: readFileSync('/proc/self/maps', 'utf8')
      .split('\n')
      .filter((line) => /memfd:|kvm/.test(line)).length,
  };
}

/** Waits until the counts stand still: the kernel removes a joined thread a moment later. */
export async function settledCounts(): Promise<ProcessCounts> {
  let last = countProcess();
  for (let same = 0; same < 5; ) {
    await delay(20);
    const now = countProcess();
    same = JSON.stringify(now) === JSON.stringify(last) ? same + 1 : 0;
    last = now;
  }
  return last;
}
