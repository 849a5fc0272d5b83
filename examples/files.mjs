// The files of a guest: watched while a program writes them, read and written as streams, and
// replaced in one step.
//
//   node examples/files.mjs
import { createInterface } from 'node:readline';
import { pipeline } from 'node:stream/promises';

import { Vm } from 'forklet';

const vm = await Vm.create();
try {
  // A program of the guest works, and the host waits for its files.
  await vm.fs.mkdir('/srv/reports', { recursive: true });
  const watcher = vm.fs.watch('/srv/reports', { signal: AbortSignal.timeout(60_000) });
  const worker = vm.exec('cd /srv/reports; seq 20000 >numbers; : >done');
  for await (const { eventType, filename } of watcher) {
    if (eventType === 'rename') console.log(`new: ${filename}`);
    if (filename === 'done') break;
  }
  await worker;

  // Bytes cross as they are read: the guest waits for this loop.
  let sum = 0;
  const numbers = createInterface({ input: vm.fs.createReadStream('/srv/reports/numbers') });
  for await (const line of numbers) sum += Number(line);
  console.log(`sum: ${sum}`);

  // And the other way: the generator waits for the guest.
  await pipeline(function* () {
    for (let i = 0; i < 5000; i++) yield `line ${i}\n`;
  }, vm.fs.createWriteStream('/srv/lines'));
  console.log(`lines: ${(await vm.exec('wc -l </srv/lines')).stdout.trim()}`);

  // Whoever reads the file finds all of the old or all of the new text.
  const config = '/srv/config.json';
  await vm.fs.writeFile(config, '{"version":1}');
  await vm.fs.writeFile(config, '{"version":2}', { atomic: true });
  console.log(`config: ${await vm.fs.readFile(config, 'utf8')}`);
} finally {
  await vm.close();
}
