import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { AgentGuest } from '../helpers/agent-guest.js';
import { Dialogue } from '../helpers/dialogue.js';

let guest: AgentGuest;

beforeAll(async () => {
  guest = await AgentGuest.start();
});

afterAll(async () => {
  await guest.stop();
});

describe('a command with a terminal', () => {
  test('ends when it is awaited and nobody types', async () => {
    const { stdout, stderr, exitCode } = await guest.exec('cat; tty >&2 && echo "is one"', {
      pty: true,
    });

    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/^\/dev\/pts\/\d+\r\nis one\r\n$/);
    expect(stderr).toBe('');
  });

  test('ends when nobody types by option', async () => {
    const handle = guest.exec('cat; echo ended', { pty: true, stdin: 'ignore' });

    expect(await handle.lines().next()).toEqual({ done: false, value: 'ended' });
  });

  test('gets the input that was given', async () => {
    const { stdout } = await guest.exec('stty -echo; read a; read b; echo "$b $a"', {
      pty: true,
      stdin: 'one\ntwo',
    });

    expect(stdout).toContain('two one\r\n');
  });

  test('has a usual size unless one is given', async () => {
    const usual = await guest.exec('stty size', { pty: true });
    const given = await guest.exec('stty size', { pty: { columns: 132, rows: 43 } });

    expect([usual.stdout, given.stdout]).toEqual(['24 80\r\n', '43 132\r\n']);
  });

  test.each([
    ['is set', {}, 'xterm-256color'],
    ['is the caller’s', { TERM: 'vt100' }, 'vt100'],
    ['is absent where the caller removes it', { TERM: undefined }, 'none'],
  ])('whose TERM %s', async (_how, env, expected) => {
    // Not by a shell, which may set it.
    const { stdout } = await guest.exec(['env'], { pty: true, env });

    expect(/^TERM=(.*)\r$/m.exec(stdout)?.[1] ?? 'none').toBe(expected);
  });

  test('answers, and hears of another size', async () => {
    const handle = guest.exec('while read line; do echo "got $line: $(stty size)"; done', {
      pty: true,
    });
    const dialogue = new Dialogue(handle);
    dialogue.type('one\n');
    await dialogue.shows('got one: 24 80');
    handle.resize({ columns: 100, rows: 30 });
    dialogue.type('two\n');
    await dialogue.shows('got two: 30 100');
    handle.stdin.end();

    expect(await handle.exited).toEqual({ exitCode: 0, signal: null });
    handle.resize({ columns: 1, rows: 1 });
  });

  test('cannot be asked for standard error', async () => {
    const handle = guest.exec('true', { pty: true });

    expect(() => handle.stderr).toThrow(/stderr is empty: the command has a terminal/);
    await handle;
  });

  test('is killed with its output so far at a timeout', async () => {
    const handle = guest.exec('echo before; sleep 100', { pty: true, timeoutMs: 300 });

    await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT', stdout: 'before\r\n' });
  });

  test('goes on with its terminal where the connection is taken over', async () => {
    const script = 'echo ready; while read line; do echo "got $line: $(stty size)"; done';
    const handle = guest.exec(script, { pty: true });
    handle.catch(() => {});
    handle.stdin.on('error', () => {});
    await new Dialogue(handle).shows('ready');
    const { id } = await handle.started;
    await guest.takeOver(new Error('belongs to the parent'));

    const attached = guest.attach(id);
    const dialogue = new Dialogue(attached);
    attached.resize({ columns: 90, rows: 20 });
    dialogue.type('more\n');
    await dialogue.shows('got more: 20 90');
    expect(() => attached.stderr).toThrow(/terminal/);
    attached.stdin.end();
    expect(await attached.exited).toEqual({ exitCode: 0, signal: null });
  });
});

test('a command without a terminal cannot be resized', async () => {
  const handle = guest.exec('true');

  expect(() => handle.resize({ columns: 80, rows: 24 })).toThrow(TypeError);
  expect(() => handle.resize({ columns: 80, rows: 24 })).toThrow('"pty"');
  await handle;
});

describe('arguments', () => {
  const run = (options: object) => () => guest.exec('true', options as never);

  test.each([
    ['a pty of a wrong type', run({ pty: 80 }), TypeError, 'pty'],
    ['a size without its half', run({ pty: { columns: 80 } }), TypeError, 'pty.rows'],
    ['no columns', run({ pty: { columns: 0, rows: 1 } }), RangeError, 'pty.columns'],
    ['too many rows', run({ pty: { columns: 1, rows: 65_536 } }), RangeError, '65536'],
    ['a depth', run({ pty: { columns: 1, rows: 1, depth: 1 } }), TypeError, 'depth'],
    ['a stderr of its own', run({ pty: true, stderr: 'inherit' }), TypeError, 'stderr'],
    ['no output', run({ pty: true, stdout: 'ignore' }), TypeError, 'stalls'],
  ])('refuses %s and names it', (_, call, type, name) => {
    expect(call).toThrow(type);
    expect(call).toThrow(name);
  });

  test('refuses a new size that is none', async () => {
    const handle = guest.exec('true', { pty: true });

    expect(() => handle.resize({ columns: 0, rows: 1 })).toThrow(RangeError);
    expect(() => handle.resize(7 as never)).toThrow(TypeError);
    await handle;
  });
});
