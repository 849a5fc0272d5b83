import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { constants } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { beforeAll, describe, expect, test } from 'vitest';

import { MiB, type Vm } from '../../lib/index.js';
import { atRest, end, until } from '../helpers/guest-files.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { sharedVm } from '../helpers/shared-vm.js';

// Every method of vm.fs against a real guest: what it does there, and with which errors it fails. How
// options are checked and how errors look in detail is tested without a VM, in test/unit. The last
// tests end the VM.

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

describe.runIf(hasKvm)('the files of a VM', () => {
  const shared = sharedVm();
  let fs: Vm['fs'];

  beforeAll(async () => {
    ({ fs } = shared.vm);
    await fs.mkdir('/tmp/t/full/inner', { recursive: true });
    await fs.mkdir('/tmp/t/empty');
    await fs.writeFile('/tmp/t/file', '0123456789');
    await fs.symlink('file', '/tmp/t/link');
    await fs.symlink('circle', '/tmp/t/circle');
  });

  describe('are', () => {
    test('written, appended to, copied, cut and removed', async () => {
      const content = randomBytes(MiB);
      await fs.writeFile('/tmp/w', content.subarray(0, 1000));
      await fs.appendFile('/tmp/w', content.subarray(1000));
      await fs.copyFile('/tmp/w', '/tmp/copy', constants.COPYFILE_EXCL);
      await fs.truncate('/tmp/w', 1001);

      const { stdout } = await shared.vm.exec(['sha256sum', '/tmp/w', '/tmp/copy']);

      expect(stdout.split('\n').map((line) => line.split(' ')[0])).toEqual([
        sha256(content.subarray(0, 1001)),
        sha256(content),
        '',
      ]);
      await fs.rm('/tmp/w');
      await fs.rm('/tmp/copy');
      await expect(fs.access('/tmp/copy')).rejects.toMatchObject({ code: 'ENOENT' });
    });

    test('renamed, linked and found by their real path', async () => {
      const odd = Buffer.from([0x6f, 0x64, 0x64, 0xff]);
      await fs.writeFile('/tmp/before', 'x');
      await fs.rename('/tmp/before', '/tmp/after');
      await fs.link('/tmp/after', '/tmp/again');
      await fs.symlink(odd, '/tmp/soft');

      expect((await fs.stat('/tmp/again')).nlink).toBe(2);
      expect(await fs.readlink('/tmp/soft', 'buffer')).toEqual(odd);
      expect(await fs.realpath('/tmp/../tmp/./t/link')).toBe('/tmp/t/file');
      expect(await fs.realpath('/proc/self/..')).toBe('/proc');
    });

    test('given modes, owners and times', async () => {
      await fs.writeFile('/tmp/attributes', '');
      await fs.symlink('attributes', '/tmp/attributes-link');
      await fs.chmod('/tmp/attributes', 0o4750);
      await fs.chown('/tmp/attributes-link', 1000, -1);
      await fs.lchown('/tmp/attributes-link', -1, 1001);
      await fs.utimes('/tmp/attributes-link', 1.5, new Date(2500));
      await fs.lutimes('/tmp/attributes-link', 3, 4);

      const { stdout } = await shared.vm.exec(
        'stat -c "%a %u %g %X %Y" /tmp/attributes /tmp/attributes-link',
      );

      // Another owner takes the bit away that lets others run the file as its owner.
      expect(stdout).toBe('750 1000 0 1 2\n777 0 1001 3 4\n');
      expect((await fs.stat('/tmp/attributes')).mtimeMs).toBe(2500);
    });

    test('listed as a tree', async () => {
      const entries = await fs.readdir('/tmp/t', { recursive: true, withFileTypes: true });

      expect(entries.map((e) => `${e.parentPath} ${e.name} ${e.isDirectory()}`).sort()).toEqual([
        '/tmp/t circle false',
        '/tmp/t empty true',
        '/tmp/t file false',
        '/tmp/t full true',
        '/tmp/t link false',
        '/tmp/t/full inner true',
      ]);
      expect(await fs.readdir('/sys/class', { recursive: true })).toContain('net/lo');
    });

    test('replaced in one step, or not at all', async () => {
      await fs.writeFile('/tmp/t/file-2', 'old', { mode: 0o640 });
      const controller = new AbortController();
      let during: string[] = [];
      const aborted = fs.writeFile(
        '/tmp/t/file-2',
        (async function* () {
          yield 'half';
          during = await fs.readdir('/tmp/t');
          controller.abort();
          yield 'never';
        })(),
        { atomic: true, signal: controller.signal },
      );
      await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
      expect(during.filter((name) => name.startsWith('.forklet-'))).toHaveLength(1);
      expect(await fs.readFile('/tmp/t/file-2', 'utf8')).toBe('old');

      await fs.writeFile('/tmp/t/file-2', 'new', { atomic: true });

      expect(await fs.readFile('/tmp/t/file-2', 'utf8')).toBe('new');
      expect((await fs.stat('/tmp/t/file-2')).mode & 0o777).toBe(0o640);
      await fs.rm('/tmp/t/file-2');
      expect((await fs.readdir('/tmp/t')).filter((name) => name.startsWith('.'))).toEqual([]);
    });

    test('made in a directory of a name that nobody has', async () => {
      const [first, second] = await Promise.all([fs.mkdtemp('/tmp/m-'), fs.mkdtemp('/tmp/m-')]);

      expect(first).not.toBe(second);
      expect((await fs.stat(first)).mode & 0o777).toBe(0o700);
    });
  });

  describe('fail with', () => {
    test.each<[string, string, string | undefined, string | undefined, () => Promise<unknown>]>([
      ['ENOENT', 'open', '/none', undefined, () => fs.readFile('/none')],
      ['ENOENT', 'rename', '/none', '/tmp/x', () => fs.rename('/none', '/tmp/x')],
      ['ENOENT', 'scandir', '/none', undefined, () => fs.readdir('/none', { recursive: true })],
      ['ENOENT', 'watch', '/none', undefined, () => fs.watch('/none').next()],
      ['EACCES', 'access', '/tmp/t/file', undefined, () => fs.access('/tmp/t/file', 1)],
      ['EPERM', 'link', '/tmp/t', '/tmp/x', () => fs.link('/tmp/t', '/tmp/x')],
      ['ENOTDIR', 'open', '/tmp/t/file/x', undefined, () => fs.writeFile('/tmp/t/file/x', '')],
      [
        'ENOTDIR',
        'rename',
        '/tmp/t/full',
        '/tmp/t/file',
        () => fs.rename('/tmp/t/full', '/tmp/t/file'),
      ],
      ['EEXIST', 'symlink', 'x', '/tmp/t/file', () => fs.symlink('x', '/tmp/t/file')],
      ['EEXIST', 'mkdir', '/tmp/t', undefined, () => fs.mkdir('/tmp/t')],
      [
        'EEXIST',
        'open',
        '/tmp/t/file',
        undefined,
        () => fs.writeFile('/tmp/t/file', '', { flag: 'wx' }),
      ],
      [
        'EEXIST',
        'copyfile',
        '/tmp/t/file',
        '/tmp/t/link',
        () => fs.copyFile('/tmp/t/file', '/tmp/t/link', constants.COPYFILE_EXCL),
      ],
      ['EISDIR', 'read', '/tmp/t', undefined, () => fs.readFile('/tmp/t')],
      ['EISDIR', 'open', '/tmp/t', undefined, () => fs.truncate('/tmp/t')],
      ['ERR_FS_EISDIR', 'rm', '/tmp/t', undefined, () => fs.rm('/tmp/t')],
      ['EINVAL', 'readlink', '/tmp/t/file', undefined, () => fs.readlink('/tmp/t/file')],
      ['EINVAL', 'rename', '/tmp/t', '/tmp/t/x', () => fs.rename('/tmp/t', '/tmp/t/x')],
      ['EINVAL', 'copyfile', '/dev/zero', '/tmp/x', () => fs.copyFile('/dev/zero', '/tmp/x')],
      ['ELOOP', 'stat', '/tmp/t/circle', undefined, () => fs.stat('/tmp/t/circle')],
      ['ELOOP', 'realpath', '/tmp/t/circle', undefined, () => fs.realpath('/tmp/t/circle')],
      [
        'ENOTEMPTY',
        'rename',
        '/tmp/t/empty',
        '/tmp/t/full',
        () => fs.rename('/tmp/t/empty', '/tmp/t/full'),
      ],
      [
        'EXDEV',
        'rename',
        '/tmp/t/file',
        '/dev/shm/x',
        () => fs.rename('/tmp/t/file', '/dev/shm/x'),
      ],
      ['EXDEV', 'link', '/tmp/t/file', '/dev/shm/x', () => fs.link('/tmp/t/file', '/dev/shm/x')],
      [
        'ENAMETOOLONG',
        'stat',
        `/${'x'.repeat(256)}`,
        undefined,
        () => fs.stat(`/${'x'.repeat(256)}`),
      ],
    ])('%s of %s %s', async (code, syscall, path, dest, call) => {
      const error = await call().then(
        () => undefined,
        (reason: unknown) => reason as NodeJS.ErrnoException & { dest?: string },
      );

      expect(error).toMatchObject({ code, syscall, path });
      expect(error?.errno).toBeLessThan(0);
      expect(error?.dest).toBe(dest);
      expect(await fs.readFile('/tmp/t/file', 'utf8')).toBe('0123456789');
    });

    test('ENOSPC on a full file system, where nothing is left of what is atomic', async () => {
      await shared.vm.exec('mkdir /tmp/small; mount -t tmpfs -o size=64k none /tmp/small', {
        check: true,
      });
      await fs.writeFile('/tmp/small/file', 'kept');
      const large = Buffer.alloc(200_000, 1);

      const atomic = fs.writeFile('/tmp/small/file', large, { atomic: true });
      await expect(atomic).rejects.toMatchObject({ code: 'ENOSPC', syscall: 'write' });
      await fs.writeFile('/tmp/large', large);
      await expect(fs.copyFile('/tmp/large', '/tmp/small/copy')).rejects.toMatchObject({
        code: 'ENOSPC',
        dest: '/tmp/small/copy',
      });
      const stream = fs.createWriteStream('/tmp/small/stream');
      const failure = end(stream);
      stream.end(large);

      expect(await failure).toMatchObject({ code: 'ENOSPC', syscall: 'write' });
      expect((await fs.readdir('/tmp/small')).sort()).toEqual(['file', 'stream']);
      expect(await fs.readFile('/tmp/small/file', 'utf8')).toBe('kept');
    });
  });

  describe('stream', () => {
    test('megabytes in and out unharmed', async () => {
      const content = randomBytes(3 * MiB + 5);
      const pieces = Array.from({ length: 49 }, (_, i) =>
        content.subarray(i * 65_000, (i + 1) * 65_000),
      );

      await pipeline(Readable.from(pieces), fs.createWriteStream('/tmp/streamed'));

      const hash = createHash('sha256');
      await pipeline(fs.createReadStream('/tmp/streamed'), hash);
      expect(hash.digest('hex')).toBe(sha256(content));
      await fs.rm('/tmp/streamed');
    });

    test('in ranges', async () => {
      const writer = fs.createWriteStream('/tmp/ranges', { mode: 0o600 });
      writer.end('0123456789');
      expect(await end(writer)).toBeUndefined();
      const update = fs.createWriteStream('/tmp/ranges', { flags: 'r+', start: 4 });
      update.end('xx');
      expect(await end(update)).toBeUndefined();

      const options = { start: 3, end: 6, encoding: 'utf8' } as const;
      expect(await fs.createReadStream('/tmp/ranges', options).toArray()).toEqual(['3xx6']);
      expect(await fs.createReadStream('/tmp/ranges', { start: 20 }).toArray()).toEqual([]);
      expect((await fs.stat('/tmp/ranges')).mode & 0o777).toBe(0o600);
    });

    test('no further than a reader that sleeps has room for', async () => {
      const { vm } = shared;
      const stream = fs.createReadStream('/dev/zero', { highWaterMark: 100_000 });
      await once(stream, 'readable');
      const asleep = await atRest(vm, 'vsockBytesFromGuest');

      expect(stream.readableLength).toBeLessThanOrEqual(200_000);
      let read = 0;
      for await (const chunk of stream) {
        read += (chunk as Buffer).length;
        if (read > MiB) break;
      }
      expect(await atRest(vm, 'vsockBytesFromGuest')).toBeLessThan(asleep + 2 * MiB);
    });

    test('no further than a guest that does not read has room for', async () => {
      const { vm } = shared;
      await vm.exec(['mkfifo', '/tmp/fifo'], { check: true });
      const reader = vm.exec(
        'exec 3<>/tmp/fifo; echo open; read line; head -c 2000000 <&3 | sha256sum',
      );
      const { stdin } = reader;
      const lines = reader.lines();
      await lines.next();
      const content = randomBytes(2_000_000);
      let taken = 0;
      const source = Readable.from(
        (function* () {
          for (; taken < content.length; taken += 50_000)
            yield content.subarray(taken, taken + 50_000);
        })(),
        { highWaterMark: 1 },
      );
      const piped = pipeline(source, fs.createWriteStream('/tmp/fifo'));
      await atRest(vm, 'vsockBytesToGuest');

      // A pipe, the agent's window, and what is buffered here.
      expect(taken).toBeLessThan(1_000_000);
      stdin.end('go\n');
      await piped;
      expect((await lines.next()).value).toBe(`${sha256(content)}  -`);
    });

    test('until they are aborted, and then are closed in the guest', async () => {
      const controller = new AbortController();
      const { signal } = controller;
      const reader = fs.createReadStream('/dev/zero', { signal });
      const writer = fs.createWriteStream('/tmp/half', { signal });
      await new Promise((resolve) => writer.write('half', resolve));
      await once(reader, 'readable');
      const ends = Promise.all([end(reader), end(writer)]);
      controller.abort('enough');

      expect(await ends).toMatchObject([
        { name: 'AbortError', cause: 'enough' },
        { name: 'AbortError', cause: 'enough' },
      ]);
      const open = (await fs.readdir('/proc/1/fd')).map((fd) =>
        fs.readlink(`/proc/1/fd/${fd}`).catch(() => ''),
      );
      const paths = await Promise.all(open);
      expect(paths).not.toContain('/dev/zero');
      expect(paths).not.toContain('/tmp/half');
      expect(await fs.readFile('/tmp/half', 'utf8')).toBe('half');
    });
  });

  describe('are watched', () => {
    test('for what programs of the guest do', async () => {
      await fs.mkdir('/tmp/watched');
      const watcher = fs.watch('/tmp/watched');

      await shared.vm.exec('cd /tmp/watched; echo a >new; mv new moved; rm moved; : >last');

      expect(await until(watcher, 'last')).toEqual([
        'rename new',
        'change new',
        'rename new',
        'rename moved',
        'rename moved',
        'rename last',
      ]);
      await watcher.return();
    });

    test('in trees, where new directories are followed', async () => {
      await fs.mkdir('/tmp/tree/old/deep', { recursive: true });
      const watcher = fs.watch('/tmp/tree', { recursive: true });
      await watcher.ready;

      await fs.writeFile('/tmp/tree/old/deep/file', '');
      expect(await until(watcher, 'old/deep/file')).toEqual(['rename old/deep/file']);
      await shared.vm.exec('mkdir -p /tmp/tree/new/deep; echo >/tmp/tree/new/deep/file');
      await until(watcher, 'new/deep/file');
      await fs.rename('/tmp/tree/new', '/tmp/tree/moved');
      await until(watcher, 'moved/deep');
      await fs.writeFile('/tmp/tree/moved/deep/later', '');
      await until(watcher, 'moved/deep/later');

      await watcher.return();
    });

    test('until they are gone', async () => {
      await fs.mkdir('/tmp/doomed');
      const watcher = fs.watch('/tmp/doomed', { recursive: true });
      await fs.rm('/tmp/doomed', { recursive: true });
      const seen: unknown[] = [];

      for await (const change of watcher) seen.push(change);

      expect(seen).toEqual([{ eventType: 'rename', filename: 'doomed' }]);
    });

    test('until that is aborted', async () => {
      const controller = new AbortController();
      const watcher = fs.watch('/tmp', { signal: controller.signal });
      await watcher.ready;
      const next = watcher.next().catch((error: unknown) => error);
      controller.abort('enough');

      expect(await next).toMatchObject({ name: 'AbortError', cause: 'enough' });
    });

    test('as far as the guest’s queue goes, and an error says that more was lost', async () => {
      const limit = '/proc/sys/fs/inotify/max_queued_events';
      const before = await fs.readFile(limit, 'utf8');
      await fs.writeFile(limit, '20\n');
      await fs.mkdir('/tmp/flood');
      const watchers = [
        fs.watch('/tmp/flood'),
        fs.watch('/tmp/flood', { overflow: 'ignore' }),
      ] as const;
      await Promise.all(watchers.map(({ ready }) => ready));
      await fs.writeFile(limit, before);
      const name = 'x'.repeat(200);
      await shared.vm.exec(
        `cd /tmp/flood; i=0; while [ $i -lt 250 ]; do : >${name}$i; i=$((i+1)); done`,
        { check: true },
      );
      const seen: string[] = [];

      const loop = (async () => {
        for await (const { filename } of watchers[0]) seen.push(filename ?? '');
      })();

      await expect(loop).rejects.toMatchObject({ code: 'ERR_FS_WATCH_QUEUE_OVERFLOW' });
      // What the guest's kernel keeps, and what the agent had taken from it by then.
      expect(seen.length).toBeGreaterThanOrEqual(20);
      expect(seen).toEqual(seen.map((_, i) => `${name}${i}`));
      const rest = until(watchers[1], 'after');
      // Taking what waits makes room, but not at once.
      await delay(patience(500));
      await fs.writeFile('/tmp/flood/after', '');
      await rest;
      await watchers[1].return();
    });

    test('by as many as the guest’s kernel allows', async () => {
      const limit = '/proc/sys/fs/inotify/max_user_instances';
      const before = await fs.readFile(limit, 'utf8');
      await fs.writeFile(limit, '3\n');
      const watchers = Array.from({ length: 4 }, () => fs.watch('/tmp/t'));
      const outcomes = await Promise.allSettled(watchers.map(({ ready }) => ready));
      await fs.writeFile(limit, before);

      expect(outcomes.filter(({ status }) => status === 'rejected')).toMatchObject([
        { reason: { code: 'EMFILE', syscall: 'watch', path: '/tmp/t' } },
      ]);
      await Promise.all(watchers.map((watcher) => watcher.return()));
    });
  });

  describe('of a VM that', () => {
    test('is paused are refused, and go on when it is resumed', async () => {
      const { vm } = shared;
      const watcher = fs.watch('/tmp/t');
      await watcher.ready;
      await vm.pause();
      await expect(fs.stat('/')).rejects.toMatchObject({ code: 'ERR_VM_PAUSED' });
      expect(await end(fs.createReadStream('/dev/zero'))).toMatchObject({ code: 'ERR_VM_PAUSED' });
      await vm.resume();

      await fs.writeFile('/tmp/t/resumed', '');

      await until(watcher, 'resumed');
      await watcher.return();
    });

    test('is forked go on in it, and its fork has nothing of what was under way', async () => {
      const { vm } = shared;
      const watcher = fs.watch('/tmp/t');
      const reader = fs.createReadStream('/dev/zero');
      await once(reader, 'readable');
      const fork = await vm.fork();
      try {
        await fork.fs.writeFile('/tmp/t/fork', '');
        await fork.fs.rename('/tmp/t/fork', '/tmp/t/fork-2');
        await fs.writeFile('/tmp/t/parent', '');

        expect(await until(watcher, 'parent')).toEqual(['rename parent']);
        const open = await fork.fs.readdir('/proc/1/fd');
        const paths = await Promise.all(
          open.map((fd) => fork.fs.readlink(`/proc/1/fd/${fd}`).catch(() => '')),
        );
        expect(paths.filter((path) => /zero|inotify/.test(path))).toEqual([]);
        reader.read();
        await once(reader, 'readable');
      } finally {
        await fork.close();
      }
      reader.destroy();
      await watcher.return();
    });

    test('exits fail with its end, whatever they were at', async () => {
      const { vm } = shared;
      const reader = fs.createReadStream('/dev/zero');
      await once(reader, 'readable');
      const writer = fs.createWriteStream('/tmp/fifo-2');
      await new Promise((resolve) => writer.write('x', resolve));
      const watcher = fs.watch('/tmp/t', { recursive: true });
      await watcher.ready;
      const copy = fs.copyFile('/tmp/none', '/tmp/x').catch((error: unknown) => error);
      expect(await copy).toMatchObject({ code: 'ENOENT' });
      const failures = Promise.all([
        end(reader),
        end(writer),
        watcher.next().catch((error: unknown) => error),
        fs.writeFile('/tmp/y', Readable.from(hang())).catch((error: unknown) => error),
      ]);

      void vm.exec(['poweroff', '-f']).catch(() => {});

      for (const failure of await failures) {
        expect(failure).toMatchObject({ name: 'VmError', code: 'ERR_VM_EXITED' });
      }
      expect(await end(fs.createReadStream('/x'))).toMatchObject({ code: 'ERR_VM_EXITED' });
      await expect(fs.watch('/tmp').next()).rejects.toMatchObject({ code: 'ERR_VM_EXITED' });
    });
  });
});

async function* hang(): AsyncGenerator<string> {
  yield 'x';
  await new Promise(() => {});
}
