// Commands and files of one VM.

import { createHash, randomBytes } from 'node:crypto';

import { MiB } from '../../dist/index.js';
import { expectSame, step } from './steps.mjs';

const FILE_BYTES = 16 * MiB;

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

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

export async function showCommands(vm) {
  await step('A kernel of its own', async () => {
    const { stdout } = await vm.exec(['uname', '-a'], { check: true });
    return [stdout.trim()];
  });

  await step('A pipeline, with standard input from this program', async () => {
    const words = 'fork\nboot\nfork\nrun\nfork\nboot\n';
    const { stdout } = await vm.exec('sort | uniq -c | sort -rn', { stdin: words, check: true });
    expectSame('the count', stdout.replace(/\s+/g, ' '), ' 3 fork 2 boot 1 run ');
    return stdout.trimEnd().split('\n');
  });

  await step('Standard output and standard error apart, and the exit code', async () => {
    const { stdout, stderr, exitCode } = await vm.exec('echo out; echo err >&2; exit 3');
    expectSame('the outcome', `${stdout}${stderr}${exitCode}`, 'out\nerr\n3');
    return [`stdout: ${stdout.trim()}`, `stderr: ${stderr.trim()}`, `exit code: ${exitCode}`];
  });

  const content = randomBytes(FILE_BYTES);
  await step('A file of 16 MiB, written', async () => {
    await watched(vm, 'vsockBytesToGuest', () => vm.fs.writeFile('/tmp/file', content));
    return [`sha256 of what was written:   ${sha256(content)}`];
  });

  await step('... and read back', async () => {
    const read = await watched(vm, 'vsockBytesFromGuest', () => vm.fs.readFile('/tmp/file'));
    expectSame('the hash', sha256(read), sha256(content));
    return [`sha256 of what was read back: ${sha256(read)}, equal`];
  });
}
