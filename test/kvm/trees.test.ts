import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { MiB } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience, slowdown } from '../helpers/patience.js';
import { sharedVm } from '../helpers/shared-vm.js';
import { carried, describeTree, makeTree, type TreeItem } from '../helpers/trees.js';

// Trees to a real guest and back. What they may not do is tested without a VM, in test/unit.

/** Where the guest's kernel is emulated, a file takes it 10 ms each way; in the svm lane Node takes 5. */
const MANY = Number(process.env['FORKLET_TEST_FILES'] ?? '1000');

let directory: string;
const at = (name: string): string => join(directory, name);

beforeAll(() => {
  directory = fs.mkdtempSync(join(tmpdir(), 'forklet-trees-'));
});

afterAll(() => {
  fs.rmSync(directory, { recursive: true });
});

/** What a tar archive keeps: seconds, and no holes. */
function asInTar(items: readonly TreeItem[]): TreeItem[] {
  return items.map((item) => ({
    ...item,
    modifiedUs: item.modifiedUs / 1_000_000n,
    sparse: false,
  }));
}

describe.runIf(hasKvm)('a tree of the host', () => {
  // A guest's tmpfs takes an inode for each 8 KiB of memory or so.
  const shared = sharedVm({ memoryBytes: MANY > 50_000 ? 1536 * MiB : 512 * MiB });

  test('comes back as it went', async () => {
    const { vm } = shared;
    makeTree(at('from'));

    const up = await vm.fs.upload(at('from'), '/tmp/tree');
    const down = await vm.fs.download('/tmp/tree', at('back'));

    expect(describeTree(at('back'))).toEqual(carried(describeTree(at('from'))));
    expect(down).toEqual(up);
  });

  test('is in the guest what tar says of it', async () => {
    const { vm } = shared;
    const { stdout } = await vm.exec(['tar', '-c', '-f', '-', '-C', '/tmp/tree', '.'], {
      encoding: 'buffer',
      check: true,
    });
    fs.mkdirSync(at('unpacked'));
    execFileSync('tar', ['-x', '-p', '-f', '-', '-C', at('unpacked')], { input: stdout });

    const expected = asInTar(carried(describeTree(at('from'))));
    expect(asInTar(describeTree(at('unpacked')))).toEqual(expected);
  });

  test('keeps nanoseconds, holes and names in common in the guest', async () => {
    const { vm } = shared;
    // Of its own, which nobody has read: that changes the time of access.
    fs.copyFileSync(at('from/holes'), at('holes'));
    const host = fs.statSync(at('holes'), { bigint: true });
    await vm.fs.upload(at('holes'), '/tmp/holes');
    const guest = await vm.fs.stat('/tmp/holes', { bigint: true });

    expect(guest.mtimeNs).toBe(host.mtimeNs);
    expect(guest.atimeNs).toBe(host.atimeNs);
    expect(guest.size).toBe(host.size);
    expect((await vm.fs.stat('/tmp/tree/holes')).blocks * 512).toBeLessThanOrEqual(4 * 4096);
    expect((await vm.fs.stat('/tmp/tree/deep/er/third')).nlink).toBe(3);
    expect((await vm.fs.stat('/tmp/tree/modes/4755')).mode & 0o7777).toBe(0o755);
    expect((await vm.fs.stat('/tmp/tree')).uid).toBe(0);
  });

  test('may have many files', { timeout: patience(120_000 + 10 * MANY) }, async () => {
    const { vm } = shared;
    for (let i = 0; i < MANY; i++) {
      if (i % 250 === 0) fs.mkdirSync(at(`many/${i / 250}`), { recursive: true });
      fs.writeFileSync(at(`many/${Math.floor(i / 250)}/${i}`), `contents of ${i}\n`);
    }

    const up = await vm.fs.upload(at('many'), '/tmp/many');
    const { stdout } = await vm.exec('find /tmp/many -type f | wc -l');
    const down = await vm.fs.download('/tmp/many', at('many-back'));

    expect(up).toMatchObject({ files: MANY, directories: MANY / 250 + 1 });
    expect(down).toEqual(up);
    expect(stdout).toBe(`${MANY}\n`);
    // Also of contents.
    execFileSync('diff', ['-r', at('many'), at('many-back')]);
  });

  test('is left out where a guest has what no tree carries, and refused where the host has', async () => {
    const { vm } = shared;
    await vm.exec(
      'mkdir /tmp/odd; mkfifo /tmp/odd/fifo; mknod /tmp/odd/null c 1 3; : >/tmp/odd/file',
    );
    fs.mkdirSync(at('odd'));
    execFileSync('mkfifo', [at('odd/fifo')]);

    const summary = await vm.fs.download('/tmp/odd', at('odd-back'));

    expect(summary).toMatchObject({ files: 1, skipped: 2 });
    expect(fs.readdirSync(at('odd-back'))).toEqual(['file']);
    await expect(vm.fs.upload(at('odd'), '/tmp/new')).rejects.toMatchObject({
      code: 'EINVAL',
      path: at('odd/fifo'),
    });
  });

  test('does not fill a guest: ENOSPC names the file', async () => {
    const { vm } = shared;
    await vm.exec('mkdir /tmp/small; mount -t tmpfs -o size=64k none /tmp/small', { check: true });
    fs.mkdirSync(at('large'));
    fs.writeFileSync(at('large/file'), Buffer.alloc(200_000, 'x'));

    await expect(vm.fs.upload(at('large'), '/tmp/small')).rejects.toMatchObject({
      code: 'ENOSPC',
      path: '/tmp/small/file',
    });
    expect(await vm.fs.readdir('/tmp/small')).toEqual([]);
  });

  test('is not followed out of its place by a guest that swaps links', async () => {
    const { vm } = shared;
    fs.mkdirSync(at('race/d'), { recursive: true });
    for (let i = 0; i < 200; i++) fs.writeFileSync(at(`race/d/${i}`), 'x');
    await vm.exec('mkdir /tmp/race /tmp/elsewhere', { check: true });
    // Another program of the guest, while the agent is at work.
    const swapper = vm.exec(
      `cd /tmp/race; i=0; while [ $i -lt ${slowdown > 1 ? 100 : 3} ]; do
         mv d e$i 2>/dev/null && ln -s /tmp/elsewhere d; i=$((i+1)); rm -f d
       done`,
    );

    const results = await Promise.allSettled([vm.fs.upload(at('race'), '/tmp/race'), swapper]);

    expect(results[1].status).toBe('fulfilled');
    expect(await vm.fs.readdir('/tmp/elsewhere')).toEqual([]);
  });
});
