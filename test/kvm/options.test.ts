import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { afterAll, describe, expect, test } from 'vitest';

import { MiB } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { sharedVm } from '../helpers/shared-vm.js';

/** A root of our own: a shell, a program and a few files that tell how they were packed. */
function makeRoot(): string {
  const root = mkdtempSync(path.join(tmpdir(), 'forklet-root-'));
  mkdirSync(path.join(root, 'bin'));
  mkdirSync(path.join(root, 'data'));
  copyFileSync('/bin/busybox', path.join(root, 'bin/busybox'));
  symlinkSync('busybox', path.join(root, 'bin/sh'));
  symlinkSync('/etc/passwd', path.join(root, 'data/link'));
  writeFileSync(path.join(root, 'data/secret'), 'mine', { mode: 0o600 });
  return root;
}

describe.runIf(hasKvm)('a VM with options of its own', () => {
  const root = makeRoot();
  const shared = sharedVm({
    memoryBytes: 256 * MiB,
    vcpus: 2,
    root,
    env: { GREETING: 'hello', HOME: undefined },
    hostname: 'branch-7',
    kernelArgs: 'forklet.test=yes',
  });

  afterAll(() => {
    rmSync(root, { recursive: true });
  });

  test('has the memory that was asked for', async () => {
    const meminfo = await shared.vm.fs.readFile('/proc/meminfo', 'utf8');
    const totalBytes = Number(/^MemTotal:\s+(\d+) kB/m.exec(meminfo)?.[1]) * 1024;

    expect(totalBytes).toBeGreaterThan(200 * MiB);
    expect(totalBytes).toBeLessThan(256 * MiB);
  });

  test('has the vCPUs that were asked for', async () => {
    const { stdout } = await shared.vm.exec(['/bin/busybox', 'dmesg']);
    expect(stdout.split('\n').filter((line) => line.includes('Firmware Bug'))).toEqual([]);
    const cpuinfo = await shared.vm.fs.readFile('/proc/cpuinfo', 'utf8');
    const each = (field: string): string[] =>
      [...cpuinfo.matchAll(new RegExp(`^${field}\\s*: (\\d+)$`, 'gm'))].map(
        (match) => match[1] ?? '',
      );

    expect(each('processor')).toEqual(['0', '1']);
    expect(each('apicid')).toEqual(['0', '1']);
    // Two cores of one processor.
    expect(each('physical id')).toEqual(['0', '0']);
    expect(each('core id')).toEqual(['0', '1']);
    expect((await shared.vm.stats()).vcpuCpuTimeMs).toHaveLength(2);
  });

  test('has the root that was given, with its links and modes, and the files of the host’s user', async () => {
    const { fs } = shared.vm;

    // The kernel makes /root, and forklet what its agent needs.
    expect((await fs.readdir('/')).sort()).toEqual(
      ['.forklet', 'bin', 'data', 'dev', 'proc', 'root', 'run', 'sys', 'tmp'].sort(),
    );
    expect(await fs.stat('/data/secret')).toMatchObject({
      mode: 0o100600,
      uid: 0,
      gid: 0,
      size: 4,
    });
    expect((await fs.lstat('/data/link')).isSymbolicLink()).toBe(true);
    await expect(fs.readFile('/data/link')).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('has the environment, host name and kernel arguments that were given', async () => {
    const { stdout } = await shared.vm.exec(
      'echo $GREETING; [ -z "$HOME" ] && echo none; cat /proc/sys/kernel/hostname',
      {
        env: { PATH: '/bin' },
      },
    );

    expect(stdout).toBe('hello\nnone\nbranch-7\n');
    expect(await shared.vm.fs.readFile('/proc/cmdline', 'utf8')).toContain('forklet.test=yes');
  });
});
