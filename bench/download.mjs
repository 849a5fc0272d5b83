// Metric:     rate of vm.fs.download(): one file of 64 MiB, and 1,000 files of 500 bytes in 10
//             directories
// Unit:       MiB/s; for the tree, entries/s
// Start:      JavaScript calls vm.fs.download()
// Stop:       the promise has resolved: everything is made
// Clock:      CLOCK_MONOTONIC (process.hrtime)
// Page cache: what is read is in it; what is written goes no further than that
// Samples:    2 of the file, 3 of the tree

import { rm } from 'node:fs/promises';
import { join } from 'node:path';

import { MiB } from '../dist/index.js';
import { sample } from './support/compare.mjs';
import { entriesOf, reportRate, withTrees } from './support/trees.mjs';

export async function run(bench) {
  await withTrees(bench, async ({ vm, directory, file, tree }) => {
    await vm.fs.upload(file, '/tmp/file');
    await vm.fs.upload(tree, '/tmp/tree');
    const to = join(directory, 'back');
    let summary;
    const task = (from) => ({
      run: async () => {
        summary = await vm.fs.download(from, to);
      },
      afterEach: () => rm(to, { recursive: true }),
    });
    const ofFile = await sample(bench.quick ? 1 : 2, task('/tmp/file'));
    reportRate(bench, 'download(), one file', 'MiB/s', summary.bytes / MiB, ofFile);
    const ofTree = await sample(bench.quick ? 1 : 3, task('/tmp/tree'));
    reportRate(bench, 'download(), small files', 'entries/s', entriesOf(summary), ofTree);
  });
}
