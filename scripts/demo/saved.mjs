// A snapshot on disk: saved here, loaded by another process.

import { execFile } from 'node:child_process';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { mebibytes, milliseconds, seconds, step, timed } from './steps.mjs';

const PROGRAM = fileURLToPath(new URL('load-and-fork.mjs', import.meta.url));
const TIMEOUT_MS = 120_000;

async function allocatedBytes(directory) {
  const files = await readdir(directory);
  const stats = await Promise.all(files.map((file) => stat(join(directory, file))));
  return stats.reduce((sum, { blocks }) => sum + blocks * 512, 0);
}

export async function showSave(snapshot, directory) {
  await step('Saved to a directory', async () => {
    const { ms } = await timed(() => snapshot.save(directory));
    const memory = mebibytes(snapshot.memoryBytes);
    const disk = mebibytes(await allocatedBytes(directory));
    return [`${memory} of guest memory take ${disk} on disk, written in ${milliseconds(ms)}`];
  });
}

export async function showLoad(directory, counter) {
  await step('Loaded and forked by a new process', async () => {
    const options = { timeout: TIMEOUT_MS };
    const args = [PROGRAM, directory, counter];
    const { stdout } = await promisify(execFile)(process.execPath, args, options);
    const { pid, loadMs, answeredMs, forks, file, answer } = JSON.parse(stdout);
    return [
      `this is process ${process.pid}, the new one is ${pid}: loaded in ${milliseconds(loadMs)}`,
      `fork(), nothing made ahead: ${forks}`,
      `${seconds(answeredMs)} after the process started, its fork had answered:`,
      `  ${file}`,
      `  the shell from before the freeze goes on: '${answer}'`,
    ];
  });
}
