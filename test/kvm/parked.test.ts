import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

import { describe, expect, test } from 'vitest';

import { hasKvm } from '../helpers/has-kvm.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

const BUILD = fileURLToPath(new URL('../../guest/park/build', import.meta.url));

/** Answers with its input in capitals. */
function echoProgram(): Buffer {
  const path = execFileSync(BUILD, ['echo'], { encoding: 'utf8' }).trim();
  return readFileSync(path);
}

describe.runIf(hasKvm)('a parked program', () => {
  let program: string;
  const shared = sharedSnapshot(
    async (vm) => {
      await vm.fs.writeFile('/tmp/echo', echoProgram(), { mode: 0o755 });
      const running = vm.exec(['/tmp/echo']);
      running.exited.catch(() => {});
      program = (await running.started).id;
    },
    { snapshot: { at: 'program' } },
  );

  test('answers in each fork, as often as it is asked', async () => {
    await using fork = await shared.snapshot.fork();

    expect(String(await fork.parked.call(Buffer.from('one')))).toBe('ONE');
    expect(String(await fork.parked.call(Buffer.from('two')))).toBe('TWO');
    expect(String(await fork.parked.call(Buffer.alloc(0)))).toBe('');
  });

  test('answers at once where it takes care of its uniqueness, and the rest comes later', async () => {
    await using fork = await shared.snapshot.fork({ unique: 'program' });
    expect(String(await fork.parked.call(Buffer.from('first')))).toBe('FIRST');
    const { exits } = await fork.stats();
    expect(Object.values(exits).reduce((sum, count) => sum + count, 0)).toBeLessThan(100);

    expect((await fork.exec('echo work')).stdout).toBe('work\n');
    expect(String(await fork.parked.call(Buffer.from('again')))).toBe('AGAIN');
    expect((await fork.exec('echo more')).stdout).toBe('more\n');
  });

  test('takes its first input with the fork', async () => {
    await using fork = await shared.snapshot.fork({
      input: Buffer.from('input'),
      unique: 'program',
    });

    expect(String(await fork.parked.first)).toBe('INPUT');
  });

  test('takes as much as there is room for', async () => {
    await using fork = await shared.snapshot.fork();
    const input = Buffer.alloc(61_184, 'abc');

    expect((await fork.parked.call(input)).equals(Buffer.alloc(61_184, 'ABC'))).toBe(true);
    await expect(fork.parked.call(input, { maxBytes: 10 })).rejects.toMatchObject({
      code: 'ERR_VM_PROGRAM',
    });
    expect(String(await fork.parked.call(Buffer.from('on')))).toBe('ON');
  });

  test('goes on in the VM that was frozen, too', async () => {
    expect(String(await shared.vm.parked.call(Buffer.from('parent')))).toBe('PARENT');
    expect((await shared.vm.exec('echo work')).stdout).toBe('work\n');
    expect(String(await shared.vm.parked.call(Buffer.from('again')))).toBe('AGAIN');
  });

  test('that ends fails its call', async () => {
    await using fork = await shared.snapshot.fork();
    const attached = fork.attach(program);
    attached.kill('SIGKILL');
    await attached.exited;

    await expect(
      fork.parked.call(Buffer.from('too late'), { timeoutMs: 1000 }),
    ).rejects.toMatchObject({ code: expect.stringMatching(/^ERR_VM_(PROGRAM|TIMEOUT)$/) });
  });

  test('is there again after a reset', async () => {
    await using fork = await shared.snapshot.fork({ unique: 'program' });
    await fork.parked.call(Buffer.from('one'));
    await fork.reset();

    expect(String(await fork.parked.call(Buffer.from('two')))).toBe('TWO');
  });

  test('can be frozen again in a fork, and forked from there', async () => {
    await using fork = await shared.snapshot.fork();
    await fork.parked.call(Buffer.from('one'));
    await fork.fs.writeFile('/tmp/note', 'of the fork');
    await using second = await fork.snapshot({ at: 'program' });
    await using twice = await second.fork();

    expect(String(await twice.parked.call(Buffer.from('two')))).toBe('TWO');
    expect(await twice.fs.readFile('/tmp/note', 'utf8')).toBe('of the fork');
  });

  test('serves many forks at once, and leaves nothing', async () => {
    const before = await settledCounts();
    const forks = await shared.snapshot.forkMany(4, { unique: 'program' });
    const answers = await Promise.all(
      forks.map((fork, i) => fork.parked.call(Buffer.from(`fork ${i}`))),
    );
    await Promise.all(forks.map((fork) => fork.close()));

    expect(answers.map(String)).toEqual(['FORK 0', 'FORK 1', 'FORK 2', 'FORK 3']);
    expect(await settledCounts()).toEqual(before);
  });
});
