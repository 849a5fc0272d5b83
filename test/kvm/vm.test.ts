import { createHash, randomBytes } from 'node:crypto';
import diagnostics_channel from 'node:diagnostics_channel';
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

import { describe, expect, test } from 'vitest';

import {
  type BootTimings,
  type DiagnosticsMessage,
  MiB,
  type Vm,
  type VmExit,
} from '../../lib/index.js';
import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { sharedVm } from '../helpers/shared-vm.js';

// One VM with everything at its default. What concerns commands and files in general is tested
// without a VM, in test/unit; here is what takes a real guest. The last tests end the VM.

/** Waits for what a command does, however long it takes the guest to get there. */
async function untilThere(vm: Vm, path: string): Promise<void> {
  while (!(await vm.fs.readdir('/tmp')).includes(path.slice('/tmp/'.length))) await delay(50);
}

/** Of the host's processor: the guest has the same. */
function widestRegisters(): string {
  const flags =
    /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]?.split(' ') ?? [];
  if (flags.includes('avx512f')) return 'zmm';
  return flags.includes('avx') ? 'ymm' : 'xmm';
}

describe.runIf(hasKvm)('a VM with default options', () => {
  const shared = sharedVm();

  describe('is described by', () => {
    test('its properties', async () => {
      const { vm } = shared;

      expect(vm.id).toMatch(/^vm-[0-9a-f]{16}$/);
      expect(vm.parentId).toBeNull();
      expect(vm.state).toBe('running');
      await vm.ready;
    });

    test('timings, whose stages add up', () => {
      const { totalMs, ...stages } = shared.vm.timings as BootTimings;

      for (const ms of Object.values(stages)) expect(ms).toBeGreaterThanOrEqual(0);
      expect(stages.guestMs).toBeGreaterThan(0);
      const sum = Object.values(stages).reduce((a, b) => a + b, 0);
      expect(Math.abs(totalMs - sum)).toBeLessThan(50);
    });

    test('stats', async () => {
      const stats = await shared.vm.stats();

      expect(stats.memoryAllocatedBytes).toBeGreaterThan(4 * MiB);
      expect(stats.memoryAllocatedBytes).toBeLessThanOrEqual(128 * MiB);
      expect(stats.vcpuCpuTimeMs).toHaveLength(1);
      expect(stats.vcpuCpuTimeMs[0]).toBeGreaterThan(0);
      expect(Object.values(stats.exits).reduce((a, b) => a + b, 0)).toBeGreaterThan(0);
      expect(stats.vsockBytesFromGuest).toBeGreaterThan(0);
      expect(stats.vsockBytesToGuest).toBeGreaterThan(0);
    });
  });

  describe('runs', () => {
    test('Linux 6.12', async () => {
      const { stdout } = await shared.vm.exec(['uname', '-srm']);

      expect(stdout).toMatch(/^Linux 6\.12\.\S+ x86_64\n$/);
    });

    test('without a complaint about the machine that it finds', async () => {
      const { stdout } = await shared.vm.exec(['dmesg']);

      expect(stdout).toContain('Linux version');
      const complaint = /Firmware Bug|BUG:|WARNING: CPU|consistency problem|mismatch/;
      expect(stdout.split('\n').filter((line) => complaint.test(line))).toEqual([]);
    });

    test('commands with separate streams and an exit code', async () => {
      const result = await shared.vm.exec('echo out; echo err >&2; exit 3');

      expect(result).toMatchObject({
        ok: false,
        exitCode: 3,
        signal: null,
        stdout: 'out\n',
        stderr: 'err\n',
      });
    });

    test('pipelines with stdin', async () => {
      const { stdout } = await shared.vm.exec('sort | uniq -c | tr -s " "', { stdin: 'b\na\nb\n' });

      expect(stdout).toBe(' 1 a\n 2 b\n');
    });

    test('commands that stream while they run', async () => {
      const handle = shared.vm.exec('while read line; do echo "got $line"; done; echo end');
      const lines = handle.lines();
      handle.stdin.write('one\n');
      expect(await lines.next()).toEqual({ done: false, value: 'got one' });
      handle.stdin.end('two\n');

      expect(await lines.next()).toEqual({ done: false, value: 'got two' });
      expect(await lines.next()).toEqual({ done: false, value: 'end' });
      expect(await lines.next()).toMatchObject({ done: true });
    });

    test('several commands at once', async () => {
      const results = await Promise.all(
        ['a', 'b', 'c', 'd'].map((name) => shared.vm.exec(['sh', '-c', `sleep 0.2; echo ${name}`])),
      );

      expect(results.map(({ stdout }) => stdout)).toEqual(['a\n', 'b\n', 'c\n', 'd\n']);
    });

    test('nothing that is not there', async () => {
      await expect(shared.vm.exec(['no-such-program'])).rejects.toMatchObject({
        code: 'ERR_VM_EXEC',
        errno: -2,
        syscall: 'execve',
      });
      await expect(shared.vm.exec(['/etc'])).rejects.toMatchObject({
        code: 'ERR_VM_EXEC',
        errno: -13,
      });
      await expect(shared.vm.exec('true', { cwd: '/nowhere' })).rejects.toMatchObject({
        code: 'ERR_VM_EXEC',
        syscall: 'chdir',
      });
    });

    test('nothing after a timeout: the whole process group is dead first', async () => {
      const handle = shared.vm.exec('sleep 987 & sleep 987; wait', { timeoutMs: 2000 });

      await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT' });
      expect((await shared.vm.exec('ps | grep -c "[s]leep 987"')).stdout).toBe('0\n');
    });

    test('nothing after an abort', async () => {
      const controller = new AbortController();
      const handle = shared.vm.exec('echo begun; touch /tmp/begun; sleep 986', {
        signal: controller.signal,
      });
      const failure = handle.catch((error: unknown) => error);
      await untilThere(shared.vm, '/tmp/begun');
      controller.abort('enough');

      expect(await failure).toMatchObject({
        name: 'AbortError',
        cause: 'enough',
        stdout: 'begun\n',
      });
      expect((await shared.vm.exec('ps | grep -c "[s]leep 986"')).stdout).toBe('0\n');
    });

    test('two programs against each other without either’s vector registers changing', async () => {
      const { vm } = shared;
      await vm.fs.writeFile('/tmp/vector_state', compileGuestProgram('vector_state'), {
        mode: 0o755,
      });

      const results = await Promise.all(
        ['1', '2'].map((seed) => vm.exec(['/tmp/vector_state', seed, '40'])),
      );

      const registers = widestRegisters();
      for (const result of results) {
        expect(result).toMatchObject({ ok: true, stdout: `${registers}\n` });
      }
    });
  });

  describe('has files', () => {
    test('that are the same when they are read back', async () => {
      const { vm } = shared;
      const content = randomBytes(2 * MiB + 1);

      await vm.fs.writeFile('/tmp/random', content);

      const hash = createHash('sha256').update(content).digest('hex');
      const { stdout } = await vm.exec(['sha256sum', '/tmp/random']);
      expect(stdout.split(' ')[0]).toBe(hash);
      expect((await vm.fs.readFile('/tmp/random')).equals(content)).toBe(true);
      expect((await vm.fs.stat('/tmp/random')).size).toBe(content.length);
      await vm.fs.rm('/tmp/random');
    });

    test('in directories', async () => {
      const { vm } = shared;
      await vm.fs.mkdir('/srv/a/b', { recursive: true });
      await vm.fs.writeFile('/srv/a/file', 'x');

      const entries = await vm.fs.readdir('/srv/a', { withFileTypes: true });
      expect(entries.map((entry) => [entry.name, entry.isDirectory()]).sort()).toEqual([
        ['b', true],
        ['file', false],
      ]);

      await vm.fs.rm('/srv', { recursive: true });
      await expect(vm.fs.stat('/srv')).rejects.toMatchObject({
        code: 'ENOENT',
        errno: -2,
        syscall: 'stat',
        path: '/srv',
      });
    });
  });

  describe('starts empty', () => {
    test('with no network but lo', async () => {
      expect(await shared.vm.fs.readdir('/sys/class/net')).toEqual(['lo']);
      const { stdout } = await shared.vm.exec(['cat', '/proc/net/route', '/proc/net/ipv6_route']);
      expect(stdout.split('\n').filter((line) => /\b(eth|ens|wlan)/.test(line))).toEqual([]);
    });

    test('with the stated environment and no other', async () => {
      const { stdout } = await shared.vm.exec(['env']);

      expect(stdout.trim().split('\n').sort()).toEqual([
        'HOME=/root',
        'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      ]);
    });

    test('with no file system of the host', async () => {
      const mounts = await shared.vm.fs.readFile('/proc/mounts', 'utf8');
      const types = new Set(
        mounts
          .trim()
          .split('\n')
          .map((line) => line.split(' ')[2]),
      );
      const inMemory = [
        'rootfs',
        'tmpfs',
        'devtmpfs',
        'proc',
        'sysfs',
        'devpts',
        'cgroup2',
        'mqueue',
      ];
      expect([...types].filter((type) => !inMemory.includes(type ?? ''))).toEqual([]);
      await expect(shared.vm.fs.stat(import.meta.dirname)).rejects.toMatchObject({
        code: 'ENOENT',
      });
      expect(await shared.vm.fs.readFile('/proc/cmdline', 'utf8')).not.toContain(process.cwd());
    });

    test('with no block device', async () => {
      const partitions = await shared.vm.fs.readFile('/proc/partitions', 'utf8');

      expect(partitions.trim().split('\n').slice(2)).toEqual([]);
    });

    test('with no way to dial the host', async () => {
      const { vm } = shared;
      await vm.fs.writeFile('/tmp/dial_host', compileGuestProgram('dial_host'), { mode: 0o755 });

      for (const port of ['1', '22', '1024']) {
        const { exitCode } = await vm.exec(['/tmp/dial_host', port]);
        expect({ port, exitCode }).toEqual({ port, exitCode: 104 });
      }
      expect((await vm.exec('echo still there')).stdout).toBe('still there\n');
    });
  });

  describe('tells', () => {
    test('what the guest writes to its console, and keeps it', async () => {
      const { vm } = shared;
      const heard: Buffer[] = [];
      vm.on('console', (data) => heard.push(data));

      await vm.exec('echo "to the console" >/dev/console');

      await expect.poll(() => vm.console()).toContain('to the console');
      await expect.poll(() => Buffer.concat(heard).toString()).toContain('to the console');
    });

    test('diagnostics channels of each operation', async () => {
      const { vm } = shared;
      const messages: DiagnosticsMessage[] = [];
      const listener = (message: unknown): void =>
        void messages.push(message as DiagnosticsMessage);
      diagnostics_channel.subscribe('forklet:stats', listener);
      await vm.stats();
      diagnostics_channel.unsubscribe('forklet:stats', listener);

      expect(messages).toMatchObject([{ vmId: vm.id, operation: 'stats', outcome: 'ok' }]);
    });
  });

  describe('ends', () => {
    let exit: VmExit | undefined;

    test('when the guest powers off; pending calls fail with the console’s end', async () => {
      const { vm } = shared;
      const exitEvents: VmExit[] = [];
      vm.on('exit', (value) => exitEvents.push(value));
      const pending = vm.exec('echo partial; touch /tmp/partial; sleep 1000');
      const failure = pending.catch((error: unknown) => error);
      await untilThere(vm, '/tmp/partial');

      const off = vm.exec(['poweroff', '-f']).catch((error: unknown) => error);
      exit = await vm.exited;

      expect(exit.reason).toBe('power-off');
      expect(exit.console).toContain('Power down');
      for (const error of [await failure, await off]) {
        expect(error).toMatchObject({ name: 'ExecError', code: 'ERR_VM_EXITED' });
        expect((error as { detail: string }).detail).toContain('Power down');
      }
      expect(await failure).toMatchObject({ stdout: 'partial\n' });
      expect(vm.state).toBe('exited');
      await expect.poll(() => exitEvents).toEqual([exit]);
    });

    test('and then answers nothing but stats, console and close', async () => {
      const { vm } = shared;

      await expect(vm.exec('true')).rejects.toMatchObject({ code: 'ERR_VM_EXITED' });
      await expect(vm.fs.stat('/')).rejects.toMatchObject({ code: 'ERR_VM_EXITED' });
      expect((await vm.stats()).vcpuCpuTimeMs).toHaveLength(1);
      expect(vm.console()).toContain('Power down');
    });

    test('and is closed, as often as one likes', async () => {
      const { vm } = shared;

      const first = vm.close();
      expect(vm.close()).toBe(first);
      await first;
      await vm[Symbol.asyncDispose]();

      expect(vm.state).toBe('closed');
      expect(await vm.exited).toBe(exit);
      await expect(vm.exec('true')).rejects.toMatchObject({ code: 'ERR_VM_CLOSED' });
      await expect(vm.stats()).rejects.toMatchObject({ code: 'ERR_VM_CLOSED' });
    });
  });
});
