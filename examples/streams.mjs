// Commands whose input and output are streams, that have a deadline, or that go on by themselves.
//
//   node examples/streams.mjs
import { createHash, randomBytes } from 'node:crypto';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Vm } from 'forklet';

const vm = await Vm.create();
try {
  // A reader that takes its time: the guest's pipe is full meanwhile, and nobody's memory.
  const endless = vm.exec('yes');
  let bytes = 0;
  for await (const chunk of endless.stdout) {
    bytes += chunk.length;
    if (bytes > 100_000) break;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  endless.kill('SIGKILL');
  console.log(`read enough: ${bytes > 100_000}, and then it was ${(await endless.exited).signal}`);

  // Bytes of any value, in and out, through a pipeline of Node's.
  const data = randomBytes(200_000);
  const packer = vm.exec('gzip | gunzip');
  const hash = createHash('sha256');
  await Promise.all([pipeline(Readable.from([data]), packer.stdin), pipeline(packer.stdout, hash)]);
  const same = hash.digest('hex') === createHash('sha256').update(data).digest('hex');
  console.log(`came back as it was: ${same}`);

  for await (const line of vm.exec('seq 3 | while read i; do echo "line $i"; done').lines()) {
    console.log(line);
  }

  // It ignores what asks it to end, and is dead with all it has started when this rejects.
  await vm
    .exec('trap "" TERM; while :; do sleep 1000; done', { timeoutMs: 1500 })
    .catch(({ code, signal }) => console.log(`${code}: ${signal}`));

  // Nobody has to hold a command's handle: it goes on, and is found again by its id, in a fork as well.
  const { id } = await vm.exec('read name; echo "hello $name"', { stdin: 'pipe' }).started;
  const fork = await vm.fork();
  try {
    for (const [name, where] of Object.entries({ parent: vm, fork })) {
      const [{ command }] = await where.processes();
      const found = where.attach(id);
      found.stdin.end(`${name}\n`);
      const { stdout } = await found;
      console.log(`${command} ... ${stdout.trim()}`);
    }
  } finally {
    await fork.close();
  }
} finally {
  await vm.close();
}
