// A machine is frozen, written to a directory, and goes on in another life of this program, with
// the processes that ran in it.
//
//   node examples/save-and-load.mjs [DIRECTORY]
//
// The first run boots and saves; with a directory of yours, later runs load at once.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { Snapshot, Vm } from 'forklet';

const COUNTER = 'n=0; while read line; do n=$((n + 1)); echo "$n: $line"; done';

/** Boots a VM, starts a counter in it, and saves it in the middle of that. */
async function make(directory) {
  const vm = await Vm.create();
  try {
    const counter = vm.exec(COUNTER);
    counter.stdin.write('before\n');
    const { value } = await counter.lines().next();
    console.log(`saved after ${value}`);
    const snapshot = await vm.snapshot({ label: 'counter' });
    await snapshot.save(directory);
    await snapshot.close();
  } finally {
    await vm.close();
  }
}

/** Loads it, and lets two forks go on. */
async function use(snapshot) {
  const forks = await snapshot.forkMany(2);
  for (const [i, fork] of forks.entries()) {
    const [{ id }] = await fork.processes();
    const counter = fork.attach(id);
    counter.stdin.end(`fork ${i}\n`);
    console.log((await counter).stdout.trim());
    await fork.close();
  }
}

const scratch = await mkdtemp(join(tmpdir(), 'forklet-example-'));
const directory = process.argv[2] ?? join(scratch, 'counter');
try {
  const load = () => Snapshot.load(directory, { verify: true });
  const snapshot = await load().catch(async (error) => {
    if (error.code !== 'ERR_VM_BAD_SNAPSHOT') throw error;
    await make(directory);
    return load();
  });
  await use(snapshot);
  await snapshot.close();
} finally {
  await rm(scratch, { recursive: true });
}
