import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { PassThrough, Readable, Writable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { ExecError } from '../../lib/errors.js';
import { AgentGuest } from '../helpers/agent-guest.js';

let guest: AgentGuest;

beforeAll(async () => {
  guest = await AgentGuest.start({ env: { GREETING: 'hello' } });
});

afterAll(async () => {
  await guest.stop();
});

/** Whether a process of the host is still there. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

describe('result', () => {
  test('keeps stdout, stderr and the exit code apart', async () => {
    const result = await guest.exec('echo out; echo err >&2; exit 3');

    expect(result).toMatchObject({
      ok: false,
      exitCode: 3,
      signal: null,
      stdout: 'out\n',
      stderr: 'err\n',
    });
    expect(result.durationMs).toBeGreaterThan(0);
  });

  test('runs an array as a program with its arguments, without a shell', async () => {
    const result = await guest.exec(['printf', '%s|', 'a b', '$HOME', '']);

    expect(result.stdout).toBe('a b|$HOME||');
  });

  test('names the signal that ended the command', async () => {
    const result = await guest.exec('kill -SEGV $$');

    expect(result).toMatchObject({ ok: false, exitCode: null, signal: 'SIGSEGV' });
  });

  test('returns Buffers for encoding "buffer"', async () => {
    const result = await guest.exec(['printf', '\\377\\000\\001'], { encoding: 'buffer' });

    expect(result.stdout).toEqual(Buffer.from([0xff, 0, 1]));
  });

  test('decodes in the encoding asked for', async () => {
    const result = await guest.exec(['printf', '\\377\\001'], { encoding: 'hex' });

    expect(result.stdout).toBe('ff01');
  });

  test('carries megabytes of output unharmed', async () => {
    const result = await guest.exec('head -c 5000000 /dev/zero | tr "\\0" x');

    expect(result.stdout.length).toBe(5_000_000);
    expect(/^x*$/.test(result.stdout)).toBe(true);
  });

  test('runs many commands at once', async () => {
    const results = await Promise.all(
      Array.from({ length: 40 }, (_, index) => guest.exec(`echo ${index}`)),
    );

    expect(results.map(({ stdout }) => Number(stdout))).toEqual([...Array(40).keys()]);
  });
});

describe('environment and directory', () => {
  test('passes exactly the environment of the VM, and nothing of the host', async () => {
    const result = await guest.exec(['env']);

    expect(result.stdout.trim().split('\n').sort()).toEqual([
      'GREETING=hello',
      'PATH=/usr/bin:/bin',
    ]);
  });

  test('merges env over the VM’s; undefined removes', async () => {
    const result = await guest.exec(['/usr/bin/env'], {
      env: { GREETING: undefined, PATH: undefined, EXTRA: 'a=b' },
    });

    expect(result.stdout).toBe('EXTRA=a=b\n');
  });

  test('starts in cwd', async () => {
    const result = await guest.exec('pwd', { cwd: guest.directory });

    expect(result.stdout).toBe(`${guest.directory}\n`);
  });
});

describe('stdin', () => {
  test('is at its end at once when the handle is awaited and nobody took it', async () => {
    const result = await guest.exec('cat');

    expect(result).toMatchObject({ ok: true, stdout: '' });
  });

  test('is at its end when the handle is awaited later', async () => {
    const handle = guest.exec('cat');
    await handle.started;

    expect(await handle).toMatchObject({ ok: true, stdout: '' });
  });

  test('takes what is written while the command runs', async () => {
    const handle = guest.exec('read a; echo "got $a"; read b; echo "got $b"');
    handle.stdin.write('one\n');
    const lines = handle.lines();
    expect(await lines.next()).toEqual({ done: false, value: 'got one' });

    handle.stdin.end('two\n');

    expect(await lines.next()).toEqual({ done: false, value: 'got two' });
    expect(await lines.next()).toMatchObject({ done: true });
  });

  test('can be taken in the tick in which the handle was awaited', async () => {
    const handle = guest.exec('cat');
    const result = handle.then(({ stdout }) => stdout);
    handle.stdin.end('late');

    expect(await result).toBe('late');
  });

  test.each([
    ['a string', 'input'],
    ['a Uint8Array', new TextEncoder().encode('input')],
    ['an empty string', ''],
  ])('takes %s as the whole input', async (_, stdin) => {
    const result = await guest.exec('cat', { stdin });

    expect(result.stdout).toBe(Buffer.from(stdin).toString());
  });

  test('takes a stream with megabytes in it', async () => {
    const chunk = Buffer.alloc(100_000, 'y');
    const source = Readable.from(Array.from({ length: 30 }, () => chunk));

    const result = await guest.exec('wc -c', { stdin: source });

    expect(Number(result.stdout)).toBe(3_000_000);
  });

  test('is /dev/null with "ignore"', async () => {
    const result = await guest.exec('readlink /proc/self/fd/0', { stdin: 'ignore' });

    expect(result.stdout).toBe('/dev/null\n');
  });

  test('kills the command and rejects with the error of a stream that fails', async () => {
    const source = new PassThrough();
    const handle = guest.exec('cat; sleep 100', { stdin: source });
    const { pid } = await handle.started;
    const broken = new Error('source broke');

    source.destroy(broken);

    await expect(handle).rejects.toBe(broken);
    expect(isAlive(pid)).toBe(false);
  });

  test('survives a command that exits without reading', async () => {
    const source = Readable.from(Array.from({ length: 50 }, () => Buffer.alloc(100_000)));

    const result = await guest.exec('exit 4', { stdin: source });

    expect(result.exitCode).toBe(4);
  });

  test('holds writers back while the command does not read', async () => {
    const handle = guest.exec('sleep 1; cat >/dev/null');
    const chunk = Buffer.alloc(64 * 1024);
    let accepted = 0;
    const writer = (async () => {
      for (let i = 0; i < 40; i++) {
        if (!handle.stdin.write(chunk)) await once(handle.stdin, 'drain');
        accepted += chunk.length;
      }
      handle.stdin.end();
    })();

    await delay(500);
    // Agent's window, pipe and the stream's own buffer; far from all of it.
    expect(accepted).toBeLessThan(1024 * 1024);

    await writer;
    expect(await handle).toMatchObject({ ok: true });
  });

  test('fails writes after the end of the command with EPIPE, without an uncaught error', async () => {
    const handle = guest.exec('true');
    const { stdin } = handle;
    await handle;

    const failure = await new Promise<Error | null | undefined>((resolve) => {
      stdin.write('x', resolve);
    });

    expect(failure).toBeInstanceOf(Error);
  });
});

describe('stdout and stderr', () => {
  test('stream while the command runs', async () => {
    const handle = guest.exec('echo one; read x; echo two');
    const [first] = (await once(handle.stdout, 'data')) as [Buffer];
    expect(first.toString()).toBe('one\n');

    handle.stdin.end('\n');

    expect(await text(handle.stdout)).toBe('two\n');
    expect(await handle).toMatchObject({ ok: true, stdout: '' });
  });

  test('stop the command when nobody reads', async () => {
    const handle = guest.exec('yes | head -c 10000000; echo done >&2');
    const { stdout } = handle;
    let finished = false;
    handle.stderr.once('data', () => {
      finished = true;
    });

    await delay(300);
    expect(finished).toBe(false);
    expect(stdout.readableLength).toBeLessThanOrEqual(256 * 1024);

    let bytes = 0;
    for await (const chunk of stdout) bytes += (chunk as Buffer).length;
    expect(bytes).toBe(10_000_000);
    expect(await handle).toMatchObject({ ok: true });
  });

  test('go on without a reader when the stream is destroyed', async () => {
    const handle = guest.exec('yes | head -c 3000000; echo done >&2');
    handle.stdout.destroy();

    expect(await handle).toMatchObject({ ok: true, stderr: 'done\n' });
  });

  test('are /dev/null with "ignore"', async () => {
    const command = 'echo lost; [ /proc/self/fd/1 -ef /dev/null ] && echo null >&2';
    const result = await guest.exec(command, { stdout: 'ignore' });

    expect(result).toMatchObject({ stdout: '', stderr: 'null\n' });
  });

  test('go to one Writable together, which is ended once', async () => {
    const target = new PassThrough();
    const content = text(target);

    const result = await guest.exec('echo out; echo err >&2', { stdout: target, stderr: target });

    expect(result).toMatchObject({ ok: true, stdout: '', stderr: '' });
    expect((await content).split('\n').sort()).toEqual(['', 'err', 'out']);
  });

  test('end a Writable behind a command that failed, with what it had written', async () => {
    const target = new PassThrough();
    const content = text(target);

    await expect(
      guest.exec('echo partial; sleep 100', { stdout: target, timeoutMs: 1500 }),
    ).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT' });
    expect(await content).toBe('partial\n');
  });

  test('kill the command and reject with the error of a Writable that fails', async () => {
    const broken = new Error('disk full');
    const target = new Writable({
      write(_chunk, _encoding, callback) {
        callback(broken);
      },
    });
    const handle = guest.exec('yes', { stdout: target });
    const { pid } = await handle.started;

    await expect(handle).rejects.toBe(broken);
    expect(isAlive(pid)).toBe(false);
  });

  test('cannot be taken once they are being collected', async () => {
    const handle = guest.exec('sleep 0.1');
    const result = handle.then();
    await handle.started;

    expect(() => handle.stdout).toThrow(TypeError);
    await result;
  });
});

describe('lines()', () => {
  test('cuts at line ends, with the last line unfinished', async () => {
    const lines: string[] = [];
    for await (const line of guest.exec(['printf', 'a\\nb\\r\\n\\nü\\nlast']).lines())
      lines.push(line);

    expect(lines).toEqual(['a', 'b', '', 'ü', 'last']);
  });

  test('throws the failure of the command at the end', async () => {
    const lines: string[] = [];
    const iterate = async (): Promise<void> => {
      for await (const line of guest.exec('echo a; exit 1', { check: true }).lines()) {
        lines.push(line);
      }
    };

    await expect(iterate()).rejects.toMatchObject({ code: 'ERR_VM_EXIT_STATUS', exitCode: 1 });
    expect(lines).toEqual(['a']);
  });

  test('kills the command when the loop is left', async () => {
    const handle = guest.exec('yes');
    const { pid } = await handle.started;
    for await (const line of handle.lines()) {
      expect(line).toBe('y');
      break;
    }

    expect(isAlive(pid)).toBe(false);
    expect(await handle).toMatchObject({ ok: false, signal: 'SIGKILL' });
  });

  test('fails with ERR_VM_MAX_OUTPUT on a line without end', async () => {
    const iterate = async (): Promise<void> => {
      const handle = guest.exec('head -c 100000000 /dev/zero', { maxOutputBytes: 100_000 });
      for await (const _ of handle.lines());
    };

    await expect(iterate()).rejects.toMatchObject({ code: 'ERR_VM_MAX_OUTPUT' });
  });
});

describe('handle', () => {
  test('is a promise whose derived promises are plain', () => {
    const handle = guest.exec('true');

    expect(handle).toBeInstanceOf(Promise);
    expect(handle.then().constructor).toBe(Promise);
    expect(handle.finally(() => {}).constructor).toBe(Promise);
  });

  test('starts and ends without being awaited', async () => {
    const handle = guest.exec(['touch', guest.path('unawaited')], { stdout: 'ignore' });

    expect(await handle.exited).toEqual({ exitCode: 0, signal: null });
    expect(await guest.fs.readdir(guest.directory)).toContain('unawaited');
  });

  test('never raises unhandledRejection when nobody awaits it', async () => {
    const unhandled: unknown[] = [];
    const listener = (reason: unknown): void => void unhandled.push(reason);
    process.on('unhandledRejection', listener);

    const handle = guest.exec(['/does/not/exist']);
    void handle.started;
    void handle.exited;
    await handle.exited.catch(() => {});
    await delay(50);
    process.off('unhandledRejection', listener);

    expect(unhandled).toEqual([]);
  });

  test('tells id and pid when it runs', async () => {
    const handle = guest.exec('echo $$; read x');
    const { id, pid } = await handle.started;
    handle.stdin.end();

    expect(id).toMatch(/^vm-test\/\d+$/);
    expect((await handle).stdout).toBe(`${pid}\n`);
  });

  test('tells started also when asked for it later', async () => {
    const handle = guest.exec('read x');
    await delay(100);

    expect((await handle.started).pid).toBeGreaterThan(1);
    handle.stdin.end();
    await handle;
  });

  test('kill() signals the whole process group', async () => {
    const handle = guest.exec('sleep 100 & echo $!; wait');
    const [first] = (await once(handle.stdout, 'data')) as [Buffer];

    expect(handle.kill('SIGTERM')).toBe(true);

    expect(await handle).toMatchObject({ signal: 'SIGTERM' });
    await expect.poll(() => isAlive(Number(first)), { timeout: 10_000 }).toBe(false);
    expect(handle.kill()).toBe(false);
  });

  test('kill() refuses what is no signal', () => {
    const handle = guest.exec('true');

    expect(() => handle.kill('SIGNOPE' as 'SIGTERM')).toThrow(TypeError);
    expect(() => handle.kill(65)).toThrow(TypeError);
  });

  test('sends what belongs together in one piece', async () => {
    guest.sends.length = 0;

    await guest.exec('cat', { stdin: 'input' });

    expect(guest.sends.length).toBe(1);
  });

  test('releases the event loop when it is done', async () => {
    await Promise.all([
      guest.exec('true'),
      guest.exec('exit 1'),
      guest.exec(['/nope']).catch(() => {}),
    ]);

    expect(guest.hold.held).toBe(0);
  });
});

describe('failures', () => {
  test.each([
    ['not found', ['/does/not/exist'], 'ENOENT', -2, 'execve'],
    ['not found in PATH', ['no-such-program'], 'ENOENT', -2, 'execve'],
    ['not executable', ['/proc/self/status'], 'EACCES', -13, 'execve'],
    ['a directory', ['/tmp'], 'EACCES', -13, 'execve'],
  ])(
    'rejects with ERR_VM_EXEC when the program is %s',
    async (_, command, name, errno, syscall) => {
      const handle = guest.exec(command);

      await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_EXEC', errno, syscall });
      await expect(handle).rejects.toThrow(name);
      await expect(handle.started).rejects.toMatchObject({ code: 'ERR_VM_EXEC' });
      await expect(handle.exited).rejects.toMatchObject({ code: 'ERR_VM_EXEC' });
    },
  );

  test('rejects with ERR_VM_EXEC when cwd is bad', async () => {
    await expect(guest.exec(['true'], { cwd: '/nowhere' })).rejects.toMatchObject({
      code: 'ERR_VM_EXEC',
      errno: -2,
      syscall: 'chdir',
    });
  });

  test('rejects with ERR_VM_EXEC (E2BIG) when the arguments are too large', async () => {
    const handle = guest.exec(['echo', 'x'.repeat(3_000_000)]);

    await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_EXEC', errno: -7 });
  });

  test('rejects with ERR_VM_EXIT_STATUS and the output with check', async () => {
    const handle = guest.exec('echo partial; exit 7', { check: true });

    await expect(handle).rejects.toMatchObject({
      code: 'ERR_VM_EXIT_STATUS',
      exitCode: 7,
      stdout: 'partial\n',
    });
    expect(await handle.exited).toEqual({ exitCode: 7, signal: null });
  });

  test('rejects with ERR_VM_TIMEOUT after the whole process group is dead', async () => {
    const handle = guest.exec('echo before; sleep 100 & echo $!; wait', { timeoutMs: 1500 });

    const error = await handle.then(
      () => undefined,
      (reason: unknown) => reason as ExecError,
    );

    expect(error).toBeInstanceOf(ExecError);
    expect(error).toMatchObject({ name: 'ExecError', code: 'ERR_VM_TIMEOUT' });
    const [before, pid] = String(error?.stdout).split('\n');
    expect(before).toBe('before');
    expect(isAlive(Number(pid))).toBe(false);
  });

  test('kills a process group that ignores SIGTERM', async () => {
    const handle = guest.exec('trap "" TERM INT; while :; do sleep 1; done', { timeoutMs: 100 });
    const { pid } = await handle.started;

    await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT' });
    expect(isAlive(pid)).toBe(false);
  });

  test('rejects with AbortError, its cause the reason, after the process group is dead', async () => {
    const controller = new AbortController();
    const mark = guest.path('before');
    const handle = guest.exec(`echo before; touch ${mark}; sleep 100`, {
      signal: controller.signal,
    });
    const { pid } = await handle.started;
    const failure = handle.catch((error: unknown) => error);
    await expect.poll(() => existsSync(mark), { timeout: 10_000 }).toBe(true);

    controller.abort('changed my mind');

    expect(await failure).toMatchObject({
      name: 'AbortError',
      code: 'ABORT_ERR',
      cause: 'changed my mind',
      stdout: 'before\n',
    });
    expect(isAlive(pid)).toBe(false);
  });

  test('rejects at once when the signal was aborted before', async () => {
    guest.sends.length = 0;

    await expect(guest.exec('true', { signal: AbortSignal.abort() })).rejects.toMatchObject({
      name: 'AbortError',
    });
    expect(guest.sends).toEqual([]);
  });

  test('rejects with ERR_VM_MAX_OUTPUT and kills the command beyond maxOutputBytes', async () => {
    const handle = guest.exec('yes', { maxOutputBytes: 1000 });
    const { pid } = await handle.started;

    await expect(handle).rejects.toMatchObject({
      code: 'ERR_VM_MAX_OUTPUT',
      stdout: 'y\n'.repeat(500),
    });
    expect(isAlive(pid)).toBe(false);
  });

  test('takes exactly maxOutputBytes', async () => {
    const result = await guest.exec('head -c 1000 /dev/zero', { maxOutputBytes: 1000 });

    expect(result.stdout.length).toBe(1000);
  });

  test('has the caller in its stack', async () => {
    const failing = async (): Promise<void> => {
      await guest.exec(['/does/not/exist']);
    };

    await expect(failing()).rejects.toMatchObject({
      stack: expect.stringContaining('exec.test.ts') as string,
    });
  });
});

describe('arguments', () => {
  test('shows the right form for exec(program, args)', () => {
    expect(() => guest.exec('ls', ['-l'] as never)).toThrow(
      new TypeError(
        "vm.exec() takes program and arguments as one array: vm.exec(['ls', '-l']). " +
          'A string alone is a command line for /bin/sh.',
      ),
    );
  });

  test.each([
    ['an empty array', () => guest.exec([]), TypeError, 'command'],
    ['an empty program', () => guest.exec(['']), TypeError, 'command[0]'],
    ['a number', () => guest.exec(1 as never), TypeError, 'command'],
    ['NUL', () => guest.exec(['a', 'b\0c']), TypeError, 'command[1]'],
    ['an unknown option', () => guest.exec('x', { timeout: 1 } as never), TypeError, 'timeoutMs'],
    ['a cwd of a wrong type', () => guest.exec('x', { cwd: 1 as never }), TypeError, 'cwd'],
    ['env of a wrong type', () => guest.exec('x', { env: { A: 1 as never } }), TypeError, 'env.A'],
    ['an env name with "="', () => guest.exec('x', { env: { 'A=B': '' } }), TypeError, 'A=B'],
    ['a timeout of 0', () => guest.exec('x', { timeoutMs: 0 }), RangeError, 'timeoutMs'],
    [
      'a timeout beyond timers',
      () => guest.exec('x', { timeoutMs: 2 ** 31 }),
      RangeError,
      'timeoutMs',
    ],
    [
      'a fraction of bytes',
      () => guest.exec('x', { maxOutputBytes: 0.5 }),
      RangeError,
      'maxOutputBytes',
    ],
    [
      'a wrong encoding',
      () => guest.exec('x', { encoding: 'utf9' as never }),
      TypeError,
      'encoding',
    ],
    ['a wrong stdin', () => guest.exec('x', { stdin: 7 as never }), TypeError, 'stdin'],
    ['a wrong stdout', () => guest.exec('x', { stdout: 'file' as never }), TypeError, 'stdout'],
    ['a wrong signal', () => guest.exec('x', { signal: {} as never }), TypeError, 'signal'],
    ['a wrong check', () => guest.exec('x', { check: 1 as never }), TypeError, 'check'],
  ])('refuses %s and names it', (_, call, type, name) => {
    expect(call).toThrow(type);
    expect(call).toThrow(name);
  });
});
