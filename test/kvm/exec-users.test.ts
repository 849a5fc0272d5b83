import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';

import { beforeAll, beforeEach, describe, expect, test } from 'vitest';

import type { Vm } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { sharedVm } from '../helpers/shared-vm.js';

// Users, limits and what a command leaves behind, in a real guest: its agent is root, as PID 1 is.

describe.runIf(hasKvm)('in a guest with users', () => {
  const shared = sharedVm();

  beforeAll(async () => {
    const { fs } = shared.vm;
    await fs.appendFile('/etc/passwd', 'app:x:1000:1001:App:/home/app:/bin/sh\n');
    await fs.appendFile('/etc/group', 'app:x:1001:\nwheel:x:10:root,app\nothers:x:11:root\n');
    await fs.mkdir('/home/app');
    await fs.chown('/home/app', 1000, 1001);
  });

  test('a command runs as the user, with its groups and variables', async () => {
    const { stdout } = await shared.vm.exec('id; echo $HOME,$USER,$LOGNAME; umask', {
      user: 'app',
      cwd: '/home/app',
    });

    expect(stdout).toBe(
      'uid=1000(app) gid=1001(app) groups=10(wheel),1001(app)\n/home/app,app,app\n0022\n',
    );
  });

  test('its files belong to the user, without the bits of the umask', async () => {
    const { vm } = shared;
    await vm.exec('touch file', { user: 'app', cwd: '/home/app', umask: 0o077, check: true });

    const { uid, gid, mode } = await vm.fs.stat('/home/app/file');
    expect([uid, gid, mode & 0o777]).toEqual([1000, 1001, 0o600]);
  });

  test('it may not do what only root may', async () => {
    const { exitCode, stderr } = await shared.vm.exec('echo x > /etc/passwd', { user: 'app' });

    expect(exitCode).not.toBe(0);
    expect(stderr).toContain('Permission denied');
  });

  test('it may not enter a directory that is closed to it', async () => {
    await expect(shared.vm.exec('true', { user: 'app', cwd: '/root' })).rejects.toMatchObject({
      code: 'ERR_VM_EXEC',
      syscall: 'chdir',
      errno: -13,
    });
  });

  test('it may not signal or look into the agent', async () => {
    const script = 'kill -STOP 1; cat /proc/1/environ > /dev/null';

    const { stderr } = await shared.vm.exec(script, { user: 'app' });

    expect(stderr.match(/not permitted|denied/gi)).toHaveLength(2);
  });

  test('a user who is not there fails the start', async () => {
    await expect(shared.vm.exec('true', { user: 'nobod' })).rejects.toThrow(
      "no user 'nobod' in the guest",
    );
  });

  test('limits hold', async () => {
    const { stdout, signal } = await shared.vm.exec('ulimit -n; exec yes > /tmp/much', {
      limits: { nofile: 100, fsize: 8192 },
    });

    expect(stdout).toBe('100\n');
    expect(signal).toBe('SIGXFSZ');
  });

  test('a command that ignores SIGTERM is killed by its timeout', async () => {
    const script = 'trap "" TERM; kill -TERM $$; echo ready; while :; do sleep 1; done';
    const handle = shared.vm.exec(script, { user: 'app', timeoutMs: patience(3_000) });

    await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT', stdout: 'ready\n' });
  });

  describe('a daemon, of a session of its own and no child of its command any more,', () => {
    const DAEMON = '(setsid sh -c "echo \\$\\$ > /tmp/daemon; exec tail -f /dev/null" &)';
    const script = `${DAEMON}; until [ -s /tmp/daemon ]; do sleep 0.1; done; while sleep 0.2; do echo on; done`;

    /** Whether the last one of that VM is there. */
    async function isThere({ fs }: Vm): Promise<boolean> {
      const pid = (await fs.readFile('/tmp/daemon', 'utf8')).trim();
      return (await fs.readdir('/proc')).includes(pid);
    }

    beforeEach(() => shared.vm.fs.rm('/tmp/daemon', { force: true }));

    async function cgroups({ fs }: Vm): Promise<string[]> {
      const entries = await fs.readdir('/sys/fs/cgroup/forklet', { withFileTypes: true });
      return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
    }

    test('dies with a command that is killed as a tree', async () => {
      const handle = shared.vm.exec(script, { user: 'app', killTree: true });
      for await (const _ of handle.lines()) break;

      expect(await isThere(shared.vm)).toBe(false);
      expect(await cgroups(shared.vm)).toEqual([]);
    });

    test('dies in a fork as well, whose cgroups are its own', async () => {
      const { vm } = shared;
      const abort = new AbortController();
      const handle = vm.exec(script, { killTree: true, signal: abort.signal });
      const { id } = await handle.started;
      // Not with lines(), which would end with the loop.
      await once(handle.stdout, 'data');
      const fork = await vm.fork();
      try {
        const other = fork.exec('while sleep 0.2; do echo on; done', { killTree: true });
        for await (const _ of other.lines()) break;
        expect(await isThere(fork)).toBe(true);
        for await (const _ of fork.attach(id).lines()) break;
        expect(await isThere(fork)).toBe(false);
      } finally {
        await fork.close();
      }
      expect(await isThere(vm)).toBe(true);
      abort.abort();
      await expect(handle).rejects.toThrow('aborted');
      expect(await isThere(vm)).toBe(false);
    });

    test('goes on when its command has ended, and then the cgroup goes', async () => {
      const { vm } = shared;
      await vm.exec(`${DAEMON}; until [ -s /tmp/daemon ]; do sleep 0.1; done`, { killTree: true });

      expect(await isThere(vm)).toBe(true);
      expect(await cgroups(vm)).toHaveLength(1);
      await vm.exec('kill $(cat /tmp/daemon)');
      while ((await cgroups(vm)).length > 0) await delay(50);
    });
  });
});
