import { readFileSync } from 'node:fs';

import { describe, expect, onTestFinished, test } from 'vitest';

import { type ExecProcess, MiB, type Vm } from '../../lib/index.js';
import { mapFewAtOnce } from '../helpers/few-at-once.js';
import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

const DEPTH = 32;
const WRITTEN_BYTES = 4 * MiB;

/** Keeps every line that it has ever read in its memory, and answers with all of them. */
const KEEPER = 'all=; while read line; do all="$all$line "; echo "$all"; done';

/** Pages of guests that are this process' own, beside those that it shares with a snapshot. */
function privateBytes(): number {
  let bytes = 0;
  let guest = false;
  for (const line of readFileSync('/proc/self/smaps', 'utf8').split('\n')) {
    if (/^[0-9a-f]+-/.test(line)) guest = line.includes('memfd:');
    else if (guest) bytes += Number(/^Anonymous: +(\d+) kB$/.exec(line)?.[1] ?? 0) * 1024;
  }
  return bytes;
}

const markOf = (level: number): string => `/tmp/marks/${String(level).padStart(2, '0')}`;

async function tell(keeper: ExecProcess, line: string): Promise<string> {
  keeper.stdin.write(`${line}\n`);
  const { value } = await keeper.lines().next();
  return String(value).trim();
}

async function output(vm: Vm, ...command: string[]): Promise<string> {
  return (await vm.exec(command, { check: true })).stdout.trim();
}

/** What a VM has in /tmp/marks and /etc/changed, in its exchange with the host, and as its name. */
async function look(vm: Vm): Promise<string[]> {
  return [
    (await vm.fs.readdir('/tmp/marks')).join(),
    await vm.fs.readFile('/etc/changed', 'utf8'),
    await output(vm, '/tmp/device', 'show'),
    (await vm.fs.readFile('/proc/sys/kernel/hostname', 'utf8')).trim(),
  ];
}

describe.runIf(hasKvm)('what a fork writes', () => {
  let keeper: string;
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.mkdir('/tmp/marks');
    await vm.fs.writeFile('/tmp/device', compileGuestProgram('forklet_device'), { mode: 0o755 });
    await vm.fs.writeFile('/etc/changed', 'parent');
    await output(vm, '/tmp/device', 'mark', '1');
    const handle = vm.exec(KEEPER);
    expect(await tell(handle, 'parent')).toBe('parent');
    handle.exited.catch(() => {});
    keeper = (await handle.started).id;
  });

  test('to files, memory and devices is its own: no sibling, parent or later fork sees it', async () => {
    const forks = await shared.snapshot.forkMany(2, { start: 'on-demand' });
    await mapFewAtOnce(forks, async (fork, i) => {
      const name = `fork-${i}`;
      await fork.fs.writeFile(`/tmp/marks/${name}`, '');
      await fork.fs.writeFile('/etc/changed', name);
      await fork.fs.writeFile('/proc/sys/kernel/hostname', name);
      await fork.fs.writeFile('/dev/console', `${name}\n`);
      await output(fork, '/tmp/device', 'mark', `1${i}`);
      expect(await tell(fork.attach(keeper), name)).toBe(`parent ${name}`);
    });
    await shared.vm.fs.writeFile('/etc/changed', 'parent, later');
    const later = await shared.snapshot.fork();
    const vms = [...forks, shared.vm, later];

    expect(await mapFewAtOnce(vms, look)).toEqual([
      ['fork-0', 'fork-0', '10', 'fork-0'],
      ['fork-1', 'fork-1', '11', 'fork-1'],
      ['', 'parent, later', '1', 'forklet'],
      ['', 'parent', '1', 'forklet'],
    ]);
    expect(await tell(later.attach(keeper), 'later')).toBe('parent later');
    const consoles = vms.map((vm) => String(vm.console()));
    expect(consoles.map((text) => text.includes('fork-0'))).toEqual([true, false, false, false]);
    expect(consoles.map((text) => text.includes('fork-1'))).toEqual([false, true, false, false]);
    await Promise.all([...forks, later].map((vm) => vm.close()));
  });

  test(`is seen by its forks, theirs, and so on to depth ${DEPTH}, and by nobody before`, async () => {
    const before = await settledCounts();
    const levels: Vm[] = [];
    const closeAll = () => Promise.all(levels.map((vm) => vm.close()));
    onTestFinished(async () => void (await closeAll()));
    let seen = 'parent';
    for (let level = 1; level <= DEPTH; level++) {
      const above = levels.at(-1);
      const fork = await (above ?? shared.snapshot).fork();
      levels.push(fork);
      // An idle VM still wakes now and then; on a busy host 31 of them starve the one at work.
      await above?.pause();
      await fork.fs.writeFile(markOf(level), `level ${level}`);
      seen += ` ${level}`;
      expect(await tell(fork.attach(keeper), String(level))).toBe(seen);
    }
    const deepest = levels.at(-1);
    const texts = await mapFewAtOnce(
      levels.map((_, i) => markOf(i + 1)),
      async (path) => deepest?.fs.readFile(path, 'utf8'),
    );
    await deepest?.pause();
    const looks = await mapFewAtOnce(levels, async (vm) => {
      await vm.resume();
      const marks = await vm.fs.readdir('/tmp/marks');
      const uuid = await vm.fs.readFile('/proc/sys/kernel/random/uuid', 'utf8');
      await vm.pause();
      return { marks, uuid };
    });
    await closeAll();

    expect(looks.map(({ marks }) => marks.length)).toEqual(levels.map((_, i) => i + 1));
    expect(texts).toEqual(levels.map((_, i) => `level ${i + 1}`));
    expect(new Set(looks.map(({ uuid }) => uuid)).size).toBe(DEPTH);
    expect(await settledCounts()).toEqual(before);
  });

  test('costs memory, which is free again once it is closed', async () => {
    await (await shared.snapshot.fork()).close();
    const counts = await settledCounts();
    const before = privateBytes();
    const fork = await shared.snapshot.fork();
    await output(
      fork,
      'dd',
      'if=/dev/zero',
      'of=/tmp/large',
      'bs=64k',
      `count=${WRITTEN_BYTES >> 16}`,
    );
    const held = privateBytes();
    const { memoryAllocatedBytes } = await fork.stats();
    await fork.close();
    const after = privateBytes();

    expect(held - before).toBeGreaterThan(WRITTEN_BYTES);
    expect(memoryAllocatedBytes).toBeGreaterThan(WRITTEN_BYTES);
    expect(after - before).toBeLessThan(WRITTEN_BYTES / 2);
    expect(await settledCounts()).toEqual(counts);
  });
});
