// The demo's second process: loads the snapshot that the first one saved, forks it, looks for what
// was there before the freeze, and says so in one line of JSON.
//
//   load-and-fork.mjs DIRECTORY COUNTER

import { forkTask } from '../../bench/support/forks.mjs';
import { Snapshot } from '../../dist/index.js';
import { medians } from './beside-reference.mjs';
import { checkState } from './guest-state.mjs';
import { timed } from './steps.mjs';

const [directory, counter] = process.argv.slice(2);
const { result: snapshot, ms: loadMs } = await timed(() => Snapshot.load(directory));
try {
  const fork = await snapshot.fork();
  try {
    const state = await checkState(fork, counter, 'new process');
    const answeredMs = performance.now();
    const forks = await medians(directory, forkTask(snapshot, { pool: 'never' }, 'none'), 20);
    console.log(JSON.stringify({ pid: process.pid, loadMs, answeredMs, forks, ...state }));
  } finally {
    await fork.close();
  }
} finally {
  await snapshot.close();
}
