import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import {
  capacity,
  checkForkLimits,
  type LimitSources,
  readForkLimits,
} from '../../lib/internal/snapshot/fork-limits.js';

// What the kernel tells is written out here, so that every limit can be the tightest one.

let root: string;

beforeEach(() => {
  root = mkdtempSync(path.join(tmpdir(), 'forklet-limits-'));
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

const PLENTY: Readonly<Record<string, string>> = {
  'proc/self/limits':
    'Limit                     Soft Limit           Hard Limit           Units\n' +
    'Max processes             1000000              1000000              processes\n' +
    'Max open files            1000000              1000000              files\n',
  'proc/self/fd/0': '',
  'proc/self/fd/1': '',
  'proc/self/maps': 'one\ntwo\n',
  'proc/self/cgroup': '0::/user/session\n',
  'proc/sys/vm/max_map_count': '1000000\n',
  'proc/sys/kernel/threads-max': '1000000\n',
  'proc/loadavg': '0.1 0.2 0.3 2/100 4711\n',
  'proc/meminfo': 'MemTotal: 99999999 kB\nMemAvailable:   99999999 kB\n',
};

/** A host that has plenty of everything but what `files` say. */
function host(files: Readonly<Record<string, string>>, uid = 1000): LimitSources {
  for (const [name, text] of Object.entries({ ...PLENTY, ...files })) {
    const file = path.join(root, name);
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
  return { proc: path.join(root, 'proc'), cgroup: path.join(root, 'cgroup'), uid };
}

const limitsFile = (name: string, value: string): Record<string, string> => ({
  'proc/self/limits': (PLENTY['proc/self/limits'] as string).replace(
    new RegExp(`^${name}.*$`, 'm'),
    `${name.padEnd(26)}${value.padEnd(21)}unlimited`,
  ),
});

describe('the number of forks is bound by', () => {
  test.each([
    // Two descriptors are in use, 64 are left to others, a VM takes 14.
    ['RLIMIT_NOFILE', limitsFile('Max open files', '206'), 10],
    // 100 threads run, 64 are left to others, a VM takes 2.
    ['RLIMIT_NPROC', limitsFile('Max processes', '184'), 10],
    ['kernel.threads-max', { 'proc/sys/kernel/threads-max': '184\n' }, 10],
    // Three lines of maps, 1024 are left to others, a VM takes 8.
    ['vm.max_map_count', { 'proc/sys/vm/max_map_count': '1107\n' }, 10],
    // 64 MiB are left to others, a VM takes 450 KiB.
    ['MemAvailable', { 'proc/meminfo': 'MemAvailable: 70036 kB\n' }, 10],
    [
      'memory.max of /user',
      {
        'cgroup/user/session/memory.max': 'max\n',
        'cgroup/user/session/memory.current': '4096\n',
        'cgroup/user/memory.max': `${64 * 2 ** 20 + 10 * 450 * 1024 + 4096}\n`,
        'cgroup/user/memory.current': '4096\n',
      },
      10,
    ],
    [
      'pids.max of /user/session',
      { 'cgroup/user/session/pids.max': '94\n', 'cgroup/user/session/pids.current': '10\n' },
      10,
    ],
  ])('%s', async (name, files, count) => {
    expect(capacity(await readForkLimits(1, host(files)))).toEqual({ count, boundBy: name });
  });

  test('memory of a cgroup of version 1', async () => {
    const sources = host({
      'proc/self/cgroup': '5:devices:/\n4:memory,other:/box\n0::/\n',
      'cgroup/memory/box/memory.limit_in_bytes': `${64 * 2 ** 20 + 20 * 450 * 1024}\n`,
      'cgroup/memory/box/memory.usage_in_bytes': `${10 * 450 * 1024}\n`,
    });

    expect(capacity(await readForkLimits(1, sources))).toEqual({
      count: 10,
      boundBy: 'memory.limit_in_bytes of /memory/box',
    });
  });

  test('threads, of which each vCPU takes one', async () => {
    const sources = host({ 'proc/sys/kernel/threads-max': '184\n' });

    expect(capacity(await readForkLimits(4, sources)).count).toBe(4);
  });
});

test('limits on processes are not root’s', async () => {
  const limits = await readForkLimits(1, host(limitsFile('Max processes', '1'), 0));

  expect(limits.map(({ name }) => name)).not.toContain('RLIMIT_NPROC');
});

test('what the host does not tell is no limit', async () => {
  const nowhere = { proc: path.join(root, 'none'), cgroup: path.join(root, 'none'), uid: 1000 };

  expect(capacity(await readForkLimits(1, nowhere)).count).toBe(Number.MAX_SAFE_INTEGER);
});

test('more forks than fit are refused with the limit and its figures', async () => {
  const sources = host(limitsFile('Max open files', '206'));

  await expect(checkForkLimits(11, 1, sources)).rejects.toMatchObject({
    code: 'ERR_VM_LIMIT',
    message:
      '11 more VMs do not fit: they take 154 descriptors, and RLIMIT_NOFILE leaves 140, ' +
      'enough for 10. Raise it with `ulimit -n`.',
  });
  await checkForkLimits(10, 1, sources);
});

test('this host has room for at least one', async () => {
  await checkForkLimits(1, 1);
});
