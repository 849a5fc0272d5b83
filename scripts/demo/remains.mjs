// What the demo must not leave behind.

import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';

/** A path for a directory that is gone when this process is, unless SIGKILL ends it. */
export function temporaryDirectory() {
  const parent = mkdtempSync(join(tmpdir(), 'forklet-demo-'));
  process.once('exit', () => rmSync(parent, { recursive: true }));
  for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM']) {
    process.once(signal, () => process.exit(128 + constants.signals[signal]));
  }
  return join(parent, 'snapshot');
}

/** How many mappings and descriptors this process has that belong to VMs. */
export function countRemains() {
  const targets = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return ''; // The one that readdir had open.
    }
  });
  const maps = readFileSync('/proc/self/maps', 'utf8').split('\n');
  return [...targets, ...maps].filter((text) => /memfd:|kvm-v/.test(text)).length;
}
