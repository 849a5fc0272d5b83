// What forklet does, in one minute: boots a VM in this process and runs commands in it.
//
//   npm run demo      sets everything up first

import { createHash, randomBytes } from 'node:crypto';

import { doctor, MiB, Vm } from '../../dist/index.js';

const FILE_BYTES = 16 * MiB;

const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

/** Runs one step and prints what it was, what came out and how long it took. */
async function step(title, run) {
  process.stdout.write(`\n\x1b[1m${title}\x1b[0m\n`);
  const start = performance.now();
  const lines = await run();
  const took = seconds(performance.now() - start);
  for (const line of lines) console.log(`  ${line}`);
  console.log(`  \x1b[2m${took}\x1b[0m`);
}

/** Says every half second how many of the file's bytes have crossed, while `run` is at work. */
async function watched(vm, counter, run) {
  const before = (await vm.stats())[counter];
  let shown = 0;
  const timer = setInterval(async () => {
    const stats = await vm.stats().catch(() => undefined);
    if (stats === undefined) return;
    const percent = Math.min(100, Math.floor((100 * (stats[counter] - before)) / FILE_BYTES));
    if (process.stdout.isTTY) {
      process.stdout.write(`\r  ${percent} %\r`);
    } else if (percent >= shown + 25) {
      shown = percent;
      console.log(`  ${percent} %`);
    }
  }, 500);
  try {
    return await run();
  } finally {
    clearInterval(timer);
  }
}

async function demo(vm) {
  await step('A kernel of its own', async () => {
    const { stdout } = await vm.exec(['uname', '-a']);
    return [stdout.trim()];
  });

  await step('A pipeline, with standard input from this program', async () => {
    const words = 'fork\nboot\nfork\nrun\nfork\nboot\n';
    const { stdout } = await vm.exec('sort | uniq -c | sort -rn', { stdin: words });
    return stdout.trimEnd().split('\n');
  });

  await step('Standard output and standard error apart, and the exit code', async () => {
    const { stdout, stderr, exitCode } = await vm.exec('echo out; echo err >&2; exit 3');
    return [`stdout: ${stdout.trim()}`, `stderr: ${stderr.trim()}`, `exit code: ${exitCode}`];
  });

  const content = randomBytes(FILE_BYTES);
  await step('A file of 16 MiB, written', async () => {
    await watched(vm, 'vsockBytesToGuest', () => vm.fs.writeFile('/tmp/file', content));
    return [`sha256 of what was written:   ${sha256(content)}`];
  });

  await step('... and read back', async () => {
    const read = await watched(vm, 'vsockBytesFromGuest', () => vm.fs.readFile('/tmp/file'));
    if (sha256(read) !== sha256(content)) throw new Error('The hashes differ');
    return [`sha256 of what was read back: ${sha256(read)}, equal`];
  });
}

const report = await doctor();
if (!report.ok) {
  for (const { name, ok, found, remedy } of report.checks) {
    if (!ok) console.error(`${name}: ${found}\n  ${remedy}`);
  }
  process.exit(1);
}

let vm;
await step(`Boot Linux inside this process (KVM backend: ${report.backend})`, async () => {
  vm = await Vm.create();
  const { prepareMs, createMs, loadMs, startMs, guestMs, configureMs } = vm.timings;
  const host = prepareMs + createMs + loadMs + startMs;
  return [
    `host: ${host.toFixed(0)} ms (files ${prepareMs.toFixed(0)}, VM ${createMs.toFixed(0)}, ` +
      `load ${loadMs.toFixed(0)}, start ${startMs.toFixed(0)})`,
    `guest: ${seconds(guestMs + configureMs)} until its agent answered`,
  ];
});
try {
  await demo(vm);
} finally {
  await step('Closed', async () => {
    await vm.close();
    return ['threads, memory and descriptors are released'];
  });
}
