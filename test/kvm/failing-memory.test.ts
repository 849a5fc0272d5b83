import { mkdtempSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';

import { Snapshot } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

const IO_ERROR = { code: 'ERR_VM_IO' };

// Truncating the file behind a mapping makes the next access to it raise SIGBUS, or KVM_RUN fail.
describe.runIf(hasKvm)('when the file behind a snapshot’s memory is cut off', () => {
  let root: string;
  let count = 0;
  let directory: string;
  const shared = sharedSnapshot();

  beforeAll(async () => {
    root = mkdtempSync(path.join(tmpdir(), 'forklet-failing-'));
    // What the process keeps from the second fork on is not a leak.
    for (const fork of await shared.snapshot.forkMany(2)) await fork.close();
  });

  afterAll(() => {
    rmSync(root, { recursive: true, force: true });
  });

  beforeEach(async () => {
    directory = path.join(root, String(count++));
    await shared.snapshot.save(directory);
  });

  const cutOff = (): void => truncateSync(path.join(directory, 'memory'), 0);

  test('a fork that runs ends, with all that is pending, and nothing else does', async () => {
    const before = await settledCounts();
    const loaded = await Snapshot.load(directory);
    const fork = await loaded.fork();
    const other = await shared.snapshot.fork();
    const pending = fork.exec('sleep 1000');
    pending.catch(() => {});
    await pending.started;
    cutOff();
    const more = fork.exec('ls -lR /');

    await expect(more).rejects.toMatchObject(IO_ERROR);
    await expect(pending).rejects.toMatchObject(IO_ERROR);
    await expect(fork.exited).resolves.toMatchObject({ reason: 'io-error' });
    expect(fork.state).toBe('exited');
    await expect(fork.snapshot()).rejects.toMatchObject(IO_ERROR);
    expect((await other.exec('echo on')).stdout).toBe('on\n');
    expect((await shared.vm.exec('echo on')).stdout).toBe('on\n');
    await Promise.all([fork.close(), other.close()]);
    await loaded.close();
    expect(await settledCounts()).toEqual(before);
  });

  test('a fork that has not been entered ends when it is', async () => {
    await using loaded = await Snapshot.load(directory);
    await using fork = await loaded.fork({ start: 'on-demand' });
    cutOff();
    const work = fork.exec('true');

    await expect(work).rejects.toMatchObject(IO_ERROR);
    await expect(fork.ready).rejects.toMatchObject(IO_ERROR);
    await expect(fork.exited).resolves.toMatchObject({ reason: 'io-error' });
  });

  test('a fork that is paused can be closed, and one that goes on ends', async () => {
    await using loaded = await Snapshot.load(directory);
    const [closed, resumed] = await loaded.forkMany(2);
    if (closed === undefined || resumed === undefined) throw new Error('no forks');
    await Promise.all([closed.ready, resumed.ready]);
    await Promise.all([closed.pause(), resumed.pause()]);
    cutOff();

    await closed.close();
    await resumed.resume();
    await expect(resumed.exec('ls -lR /')).rejects.toMatchObject(IO_ERROR);
    await resumed.close();
  });

  test('no fork of it comes to life, and it cannot be saved', async () => {
    await using loaded = await Snapshot.load(directory);
    cutOff();
    const work = loaded.fork().then(async (fork) => {
      await using alive = fork;
      return (await alive.exec('true')).exitCode;
    });

    await expect(work).rejects.toMatchObject(IO_ERROR);
    await expect(loaded.save(path.join(root, 'again'))).rejects.toMatchObject(IO_ERROR);
  });
});
