// A directory of the host in a guest and back: a project is uploaded, built by programs of the guest,
// and its results are downloaded.
//
//   node examples/trees.mjs
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { MiB, Vm } from 'forklet';

const work = await mkdtemp(join(tmpdir(), 'forklet-trees-'));
const vm = await Vm.create();
try {
  await mkdir(join(work, 'project/src'), { recursive: true });
  for (const fruit of ['apple', 'fig', 'pear']) {
    await writeFile(join(work, 'project/src', fruit), `${fruit}\n`.repeat(3));
  }
  const build =
    '#!/bin/sh\nmkdir out; cd src\nfor name in *; do sort -u "$name" >"../out/$name"; done\n';
  await writeFile(join(work, 'project/build'), build, { mode: 0o755 });

  // One operation for the whole tree; modes, times and links come along.
  const up = await vm.fs.upload(join(work, 'project'), '/tmp/project');
  console.log(`uploaded: ${up.files} files in ${up.directories} directories`);

  await vm.exec(['./build'], { cwd: '/tmp/project', check: true });

  // What a guest may make the host write has a bound, and stays inside of the directory.
  const to = join(work, 'out');
  const down = await vm.fs.download('/tmp/project/out', to, { maxBytes: 10 * MiB });
  console.log(`downloaded: ${down.files} files, ${down.bytes} bytes`);
  for (const name of (await readdir(to)).sort()) {
    console.log(`${name}: ${(await readFile(join(to, name), 'utf8')).trim()}`);
  }
} finally {
  await vm.close();
  await rm(work, { recursive: true });
}
