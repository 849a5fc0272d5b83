// Runs the programs beside it as their headers say, with plain Node, against the built package.

import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { doctor } from 'forklet';
import { describe, expect, test } from 'vitest';

const execFileAsync = promisify(execFile);

const { backend } = await doctor();

/** What a program prints; it fails the test if it complains about anything. */
async function run(name: string, ...args: string[]): Promise<string> {
  const program = join(import.meta.dirname, name);
  const { stdout, stderr } = await execFileAsync(process.execPath, [program, ...args]);
  expect(stderr).toBe('');
  return stdout;
}

describe.runIf(backend !== 'none')('the example', () => {
  test('files.mjs', async () => {
    expect(await run('files.mjs')).toBe(
      'new: numbers\nnew: done\nsum: 200010000\nlines: 5000\nconfig: {"version":2}\n',
    );
  });

  test('fork-tree.mjs', async () => {
    expect(await run('fork-tree.mjs')).toBe(
      [
        'vm: pear apple fig',
        'fork 0: apple fig pear',
        'fork 0.0: apple fig pear zucchini',
        'fork 1: pear fig apple',
        'fork 2: 3',
        '',
      ].join('\n'),
    );
  });

  test('forward.mjs', async () => {
    expect(await run('forward.mjs')).toBe(
      [
        'connect: 200 OK',
        'forward: hello from the guest',
        'fork 0: hello from fork 0',
        'fork 1: hello from fork 1',
        '',
      ].join('\n'),
    );
  });

  test('parked-lua.mjs', async () => {
    expect(await run('parked-lua.mjs')).toBe(
      [
        '1 + 2\n  = 3',
        'local t = {} for i = 1, 5 do t[i] = i * i end return table.concat(t, " ")\n  = 1 4 9 16 25',
        'string.upper = nil return "broke upper"\n  = broke upper',
        '("still here"):upper()\n  = STILL HERE',
        'error("a chunk that fails")\n  ! request:1: a chunk that fails',
        '',
      ].join('\n'),
    );
  });

  test('streams.mjs', async () => {
    const command = 'read name; echo "hello $name"';
    expect(await run('streams.mjs')).toBe(
      [
        'read enough: true, and then it was SIGKILL',
        'came back as it was: true',
        'line 1',
        'line 2',
        'line 3',
        'ERR_VM_TIMEOUT: SIGKILL',
        `${command} ... hello parent`,
        `${command} ... hello fork`,
        '',
      ].join('\n'),
    );
  });

  test('users.mjs', async () => {
    expect(await run('users.mjs')).toBe(
      [
        'runs as uid=1000(builder) gid=1000(builder) groups=1000(builder)',
        'home /home/builder, files of mode 600',
        'may not write to /etc: Permission denied',
        'descriptors: 64',
        'no user there: ERR_VM_EXEC',
        'daemons left: 0',
        '',
      ].join('\n'),
    );
  });

  test('terminal.mjs', async () => {
    expect(await run('terminal.mjs')).toBe(
      [
        'a terminal of 100 columns and 30 rows',
        'answer: 42',
        'interrupted: 130',
        'resized to 60 columns and 20 rows',
        'the editor wrote: written in vi',
        'the shell exited with 0',
        '',
      ].join('\n'),
    );
  });

  test('save-and-load.mjs, twice', async () => {
    const scratch = await mkdtemp(join(tmpdir(), 'forklet-example-'));
    try {
      const forks = '2: fork 0\n2: fork 1\n';
      const directory = join(scratch, 'counter');
      expect(await run('save-and-load.mjs', directory)).toBe(`saved after 1: before\n${forks}`);
      expect(await run('save-and-load.mjs', directory)).toBe(forks);
    } finally {
      await rm(scratch, { recursive: true });
    }
  });

  test('trees.mjs', async () => {
    expect(await run('trees.mjs')).toBe(
      [
        'uploaded: 4 files in 2 directories',
        'downloaded: 3 files, 15 bytes',
        'apple: apple',
        'fig: fig',
        'pear: pear',
        '',
      ].join('\n'),
    );
  });
});
