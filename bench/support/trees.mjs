// What is moved by the benches of trees, and how fast that went.

import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { MiB } from '../../dist/index.js';
import { summarize } from './samples.mjs';

/** Room for the large file in the guest, whose files may take half of its memory. */
const MEMORY_BYTES = 512 * MiB;
const SMALL_FILE_BYTES = 500;
const FILES_PER_DIRECTORY = 100;

/** A file and a tree of small files of the host, and a VM. */
export async function withTrees(bench, use) {
  const fileBytes = bench.quick ? MiB : 64 * MiB;
  const files = bench.quick ? 50 : 1000;
  const directory = await mkdtemp(join(tmpdir(), 'forklet-bench-'));
  const vm = await bench.fixture.boot({ memoryBytes: MEMORY_BYTES });
  try {
    const file = join(directory, 'file');
    await writeFile(file, Buffer.alloc(fileBytes, 'contents'));
    const tree = join(directory, 'tree');
    for (let i = 0; i < files; i++) {
      const below = join(tree, String(Math.floor(i / FILES_PER_DIRECTORY)));
      await mkdir(below, { recursive: true });
      await writeFile(join(below, String(i)), Buffer.alloc(SMALL_FILE_BYTES, 'x'));
    }
    await use({ vm, directory, file, tree });
  } finally {
    await vm.close();
    await rm(directory, { recursive: true });
  }
}

/** Reports how much of something went through in a second, of times in microseconds. */
export function reportRate(bench, label, unit, amount, times) {
  const rates = times.map((us) => amount / (us / 1e6));
  bench.report({ label, unit, summary: summarize(rates) });
}

export function entriesOf({ files, directories }) {
  return files + directories;
}
