import { readFileSync } from 'node:fs';

import { describe, expect, test } from 'vitest';

import { type ExecProcess, MiB, type Vm } from '../../lib/index.js';
import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

const DEPTH = 32;
const WRITTEN_BYTES = 16 * MiB;

/** Keeps every line that it has ever read in its memory, and answers with all of them. */
const KEEPER = 'all=; while read line; do all="$all$line "; echo "$all"; done';

/** Memory of this process that belongs to no file: what forks have written is among it. */
function anonymousBytes(): number {
  const rollup = readFileSync('/proc/self/smaps_rollup', 'utf8');
  return Number(/^Anonymous:\s+(\d+) kB$/m.exec(rollup)?.[1]) * 1024;
}

async function tell(keeper: ExecProcess, line: string): Promise<string> {
  keeper.stdin.write(`${line}\n`);
  const { value } = await keeper.lines().next();
  return String(value).trim();
}

async function output(vm: Vm, command: string | string[]): Promise<string> {
  return (await vm.exec(command, { check: true })).stdout.trim();
}

describe.runIf(hasKvm)('what a fork writes', () => {
  let keeper: string;
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.mkdir('/tmp/marks');
    await vm.fs.writeFile('/tmp/device', compileGuestProgram('forklet_device'), { mode: 0o755 });
    await vm.fs.writeFile('/etc/changed', 'parent');
    await output(vm, ['/tmp/device', 'mark', '1']);
    const handle = vm.exec(KEEPER);
    expect(await tell(handle, 'parent')).toBe('parent');
    handle.exited.catch(() => {});
    keeper = (await handle.started).id;
  });

  test('to files, memory and devices is its own: no sibling, parent or later fork sees it', async () => {
    const [one, two] = await shared.snapshot.forkMany(2);
    if (one === undefined || two === undefined) throw new Error('no forks');
    await Promise.all(
      [one, two].map(async (fork, i) => {
        const name = `fork-${i}`;
        await fork.fs.writeFile(`/tmp/marks/${name}`, name);
        await fork.fs.writeFile('/etc/changed', name);
        expect(await tell(fork.attach(keeper), name)).toBe(`parent ${name}`);
        await output(fork, `/tmp/device mark 1${i}; echo ${name} >/dev/console; hostname ${name}`);
      }),
    );
    await shared.vm.fs.writeFile('/etc/changed', 'parent, later');
    const later = await shared.snapshot.fork();

    const look = 'ls /tmp/marks; cat /etc/changed; echo; /tmp/device show; echo; hostname';
    expect(await output(one, look)).toBe('fork-0\nfork-0\n10\nfork-0');
    expect(await output(two, look)).toBe('fork-1\nfork-1\n11\nfork-1');
    expect(await output(shared.vm, look)).toBe('parent, later\n1\nforklet');
    expect(await output(later, look)).toBe('parent\n1\nforklet');
    expect(await tell(later.attach(keeper), 'later')).toBe('parent later');
    const consoles = [one, two, shared.vm, later].map((vm) => String(vm.console()));
    expect(consoles.map((text) => text.includes('fork-0'))).toEqual([true, false, false, false]);
    expect(consoles.map((text) => text.includes('fork-1'))).toEqual([false, true, false, false]);
    await Promise.all([one, two, later].map((vm) => vm.close()));
  });

  test(`is seen by its forks, theirs, and so on to depth ${DEPTH}, and by nobody before`, async () => {
    const before = await settledCounts();
    const levels: Vm[] = [];
    let seen = 'parent';
    for (let level = 1; level <= DEPTH; level++) {
      const above = levels.at(-1) ?? shared.snapshot;
      const fork = await above.fork({ timeoutMs: patience(100_000) });
      levels.push(fork);
      await fork.fs.writeFile(`/tmp/marks/${String(level).padStart(2, '0')}`, `level ${level}`);
      seen += ` ${level}`;
      expect(await tell(fork.attach(keeper), String(level))).toBe(seen);
    }
    const marks = await Promise.all(levels.map((vm) => vm.fs.readdir('/tmp/marks')));
    const deepest = levels.at(-1);
    const texts = await Promise.all(
      (marks.at(-1) ?? []).map((name) => deepest?.fs.readFile(`/tmp/marks/${name}`, 'utf8')),
    );
    await Promise.all(levels.map((vm) => vm.close()));

    expect(marks.map((names) => names.length)).toEqual(levels.map((_, i) => i + 1));
    expect(texts.sort()).toEqual(levels.map((_, i) => `level ${i + 1}`).sort());
    expect(await settledCounts()).toEqual(before);
  });

  test('costs memory, which is free again once it is closed', async () => {
    await (await shared.snapshot.fork()).close();
    const counts = await settledCounts();
    const before = anonymousBytes();
    const fork = await shared.snapshot.fork();
    const megabytes = WRITTEN_BYTES / MiB;
    await output(fork, `dd if=/dev/zero of=/tmp/large bs=1M count=${megabytes} 2>&1`);
    const held = anonymousBytes();
    const { memoryAllocatedBytes } = await fork.stats();
    await fork.close();
    const after = anonymousBytes();

    expect(held - before).toBeGreaterThan(WRITTEN_BYTES);
    expect(memoryAllocatedBytes).toBeGreaterThan(WRITTEN_BYTES);
    expect(after - before).toBeLessThan(WRITTEN_BYTES / 2);
    expect(await settledCounts()).toEqual(counts);
  });
});
