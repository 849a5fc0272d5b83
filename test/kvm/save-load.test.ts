import { mkdtempSync, readdirSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { MiB, Snapshot, type Vm } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

describe.runIf(hasKvm)('a snapshot in a directory', () => {
  let root: string;
  let counter: string;
  const shared = sharedSnapshot(
    async (vm) => {
      await vm.fs.writeFile('/tmp/note', 'from the parent');
      const handle = vm.exec('i=0; while read line; do i=$((i + 1)); echo "$i $line"; done');
      handle.stdin.write('parent\n');
      await handle.lines().next();
      handle.exited.catch(() => {});
      counter = (await handle.started).id;
    },
    { snapshot: { label: 'saved' } },
  );

  beforeAll(async () => {
    root = mkdtempSync(path.join(tmpdir(), 'forklet-saved-'));
    await shared.snapshot.save(path.join(root, 'one'));
  });

  afterAll(() => {
    rmSync(root, { recursive: true, force: true });
  });

  const output = async (vm: Vm, command: string): Promise<string> =>
    (await vm.exec(command, { check: true })).stdout.trim();

  test('is the same when it is loaded, verified or not', async () => {
    const { id, parentId, label, memoryBytes } = shared.snapshot;
    for (const verify of [false, true]) {
      await using loaded = await Snapshot.load(path.join(root, 'one'), { verify });
      expect(loaded).toMatchObject({ id, parentId, label, memoryBytes });
    }
  });

  test('has forks like any other, with what ran in it', async () => {
    await using loaded = await Snapshot.load(path.join(root, 'one'));
    const forks = await loaded.forkMany(2);
    const [one, two] = forks;
    if (one === undefined || two === undefined) throw new Error('no forks');

    expect(await output(one, 'cat /tmp/note')).toBe('from the parent');
    expect(await output(one, 'od -An -tx8 -N8 /dev/urandom')).not.toBe(
      await output(two, 'od -An -tx8 -N8 /dev/urandom'),
    );
    const attached = one.attach(counter);
    attached.stdin.end('loaded\n');
    expect((await attached).stdout).toBe('2 loaded\n');
    await one.reset();
    expect(await one.processes()).toMatchObject([{ id: counter }]);
    await Promise.all(forks.map((fork) => fork.close()));
  });

  test('can be saved again, also after forks of it were frozen', async () => {
    await using loaded = await Snapshot.load(path.join(root, 'one'));
    await using fork = await loaded.fork();
    await fork.fs.writeFile('/tmp/note', 'from a fork');
    await using second = await fork.snapshot();
    await second.save(path.join(root, 'two'));
    await using again = await Snapshot.load(path.join(root, 'two'), { verify: true });
    await using last = await again.fork();

    expect(await output(last, 'cat /tmp/note')).toBe('from a fork');
    expect(again.parentId).toBe(fork.id);
  });

  test('is not replaced unless it is to be', async () => {
    const directory = path.join(root, 'three');
    await shared.snapshot.save(directory);

    await expect(shared.snapshot.save(directory)).rejects.toMatchObject({ code: 'ERR_VM_EXISTS' });
    await shared.snapshot.save(directory, { overwrite: true });
    await (await Snapshot.load(directory)).close();
  });

  test('is absent when saving was given up', async () => {
    const directory = path.join(root, 'four');
    const abort = new AbortController();
    const saving = shared.snapshot.save(directory, { signal: abort.signal });
    abort.abort();

    await expect(saving).rejects.toMatchObject({ name: 'AbortError' });
    expect(readdirSync(root).filter((name) => name.includes('four'))).toEqual([]);
  });

  test('that was cut short is not loaded', async () => {
    const directory = path.join(root, 'five');
    await shared.snapshot.save(directory);
    for (const name of readdirSync(directory)) truncateSync(path.join(directory, name), 1000);

    await expect(Snapshot.load(directory)).rejects.toMatchObject({ code: 'ERR_VM_BAD_SNAPSHOT' });
  });

  test('takes no more memory than is touched, and leaves nothing', async () => {
    const before = await settledCounts();
    const loaded = await Snapshot.load(path.join(root, 'one'));
    const fork = await loaded.fork({ start: 'on-demand' });
    expect((await fork.stats()).memoryAllocatedBytes).toBeLessThan(4 * MiB);
    await fork.close();
    await loaded.close();

    expect(await settledCounts()).toEqual(before);
  });
});
