// Metric:     rate of vm.fs.upload(): one file of 64 MiB, and 1,000 files of 500 bytes in 10
//             directories
// Unit:       MiB/s; for the tree, entries/s
// Start:      JavaScript calls vm.fs.upload()
// Stop:       the promise has resolved: everything is made
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: what is read is in it; what is written goes no further than that
// Samples:    2 of the file, 3 of the tree

import { MiB } from '../dist/index.js';
import { sample } from './support/compare.mjs';
import { entriesOf, reportRate, withTrees } from './support/trees.mjs';

export async function run(bench) {
  await withTrees(bench, async ({ vm, file, tree }) => {
    let summary;
    const task = (from) => ({
      run: async () => {
        summary = await vm.fs.upload(from, '/tmp/bench');
      },
      afterEach: () => vm.fs.rm('/tmp/bench', { recursive: true }),
    });
    const ofFile = await sample(bench.quick ? 1 : 2, task(file));
    reportRate(bench, 'upload(), one file', 'MiB/s', summary.bytes / MiB, ofFile);
    const ofTree = await sample(bench.quick ? 1 : 3, task(tree));
    reportRate(bench, 'upload(), small files', 'entries/s', entriesOf(summary), ofTree);
  });
}
