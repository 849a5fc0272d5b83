import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';

import {
  compileParked,
  DATA_BYTES,
  ParkHost,
  pythonHost,
  SANITIZED,
} from '../helpers/park-host.js';

const PARK_PROGRAM = 0x10;
const IDLE = 0;
const YIELD = 2;

let directory: string;
const programs: Record<string, string> = {};
let host: ParkHost | undefined;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'forklet-park-'));
  for (const name of ['examples/echo.c', 'examples/lua.c', 'forklet-park.c']) {
    programs[name] = compileParked(directory, name, SANITIZED);
  }
  programs['plain echo'] = compileParked(directory, 'examples/echo.c', ['-O2', '-static']);
}, 120_000);

afterAll(() => rmSync(directory, { recursive: true }));

afterEach(async () => {
  if (host !== undefined) expect(await host.close()).toMatchObject({ code: 0, stderr: '' });
  host = undefined;
});

/** A program that has reached its fork point. */
async function start(name: string, args: readonly string[] = []): Promise<ParkHost> {
  host = name === 'python' ? pythonHost() : new ParkHost(programs[name] ?? '', args);
  expect(await host.parked()).toBe(PARK_PROGRAM);
  return host;
}

describe.each(['examples/echo.c', 'python'])('the parked program %s', (name) => {
  test('answers request after request', async () => {
    const program = await start(name);

    expect(await program.call('hello')).toEqual({ error: 0, output: 'HELLO' });
    expect(await program.call('')).toEqual({ error: 0, output: '' });
    expect(await program.call('a'.repeat(DATA_BYTES))).toEqual({
      error: 0,
      output: 'A'.repeat(DATA_BYTES),
    });
    expect(await program.call('short')).toEqual({ error: 0, output: 'SHORT' });
  });

  test('parks again without an answer when it is let go for no reason, or to wait', async () => {
    const program = await start(name);

    for (const state of [IDLE, YIELD, IDLE]) {
      const { error } = await program.call('not a request', { state });
      expect(error).toBe(0xdead);
    }

    expect(await program.call('hello')).toEqual({ error: 0, output: 'HELLO' });
  });

  test('reads no further than the exchange, whatever the host says', async () => {
    const program = await start(name);

    const { output } = await program.call('x'.repeat(DATA_BYTES), { inputBytes: 0xffff_ffff });

    expect(output).toBe('X'.repeat(DATA_BYTES));
  });

  test.each([
    ['of another version', { version: 2 }],
    ['that does not hold it', { held: 0 }],
  ])('ends on a host %s', async (_why, request) => {
    const program = await start(name);
    host = undefined;

    program.letGo('hello', request);

    expect(await program.exited).toMatchObject({ code: 1 });
    await program.close();
  });
});

test('the parked program echo touches at most 16 pages for a small request', async () => {
  const program = await start('plain echo');
  await program.call('warm up');
  // proc(5): "1" forgets which pages have been referenced.
  writeFileSync(`/proc/${program.pid}/clear_refs`, '1');

  await program.call('hello');

  const smaps = readFileSync(`/proc/${program.pid}/smaps`, 'utf8');
  const kib = [...smaps.matchAll(/^Referenced:\s+(\d+) kB$/gm)].map(([, text]) => Number(text));
  expect(kib.reduce((a, b) => a + b, 0) / 4).toBeGreaterThan(1);
  expect(kib.reduce((a, b) => a + b, 0) / 4).toBeLessThanOrEqual(16);
});

describe('forklet_park.py', () => {
  test('reports an exception as a failed request', async () => {
    const program = await start('python');

    expect(await program.call('fail')).toEqual({ error: 1, output: 'ValueError: as asked' });
    expect(await program.call('long')).toMatchObject({ error: 1 });
    expect(await program.call('fine')).toEqual({ error: 0, output: 'FINE' });
  });

  test('knows which machine it is in', async () => {
    const program = await start('python');
    const entropy = Buffer.alloc(64, 0xab);

    const { output } = await program.call('who', { sequence: 9n, generation: 0xfedcn, entropy });

    // serve() has asked is_new() for this request before.
    expect(output).toBe(`9 fedc ${'ab'.repeat(64)} False`);
  });
});

describe('the parked Lua', () => {
  test.each([
    ['an expression', '1 + 1', '2'],
    ['several', '1, "two", nil', '1\ttwo\tnil'],
    ['a chunk', 'local s = 0 for i = 1, 100 do s = s + i end return s', '5050'],
    ['a chunk without a result', 'x = 1', ''],
    ['nothing', '', ''],
    ['its libraries', 'string.rep("ab", 3), math.floor(2.5), #table.pack(1, 2)', 'ababab\t2\t2'],
    [
      'a value with a text of its own',
      'setmetatable({}, {__tostring = function() return "mine" end})',
      'mine',
    ],
  ])('evaluates %s', async (_name, source, output) => {
    const lua = await start('examples/lua.c');

    expect(await lua.call(source)).toEqual({ error: 0, output });
  });

  test.each([
    ['a syntax error', 'return return', /^request:1: .* near 'return'$/],
    ['an error', 'error("so be it", 0)', /^so be it$/],
    ['an error in line 2', '\nlocal x = nil + 1', /^request:2: attempt to perform arithmetic/],
    ['an error that is no text', 'error({})', /^table: /],
    ['an error without a text', 'error(setmetatable({}, {__tostring = error}))', /text/],
    ['endless recursion', 'local function f() return 1 + f() end f()', /stack overflow/],
    ['a result that is too long', 'string.rep("x", 100000)', /^the result is too long$/],
    ['bytecode', 'return load(string.dump(function() end), "=b", "t")()', /./],
    ['bytecode as a request', '\x1bLua', /attempt to load a binary chunk|unexpected symbol/],
  ])('reports %s as a failed request, and goes on', async (_name, source, message) => {
    const lua = await start('examples/lua.c');

    const answer = await lua.call(source);

    expect(answer).toEqual({ error: 1, output: expect.stringMatching(message) });
    expect(await lua.call('6 * 7')).toEqual({ error: 0, output: '42' });
  });

  test('keeps global variables of one request from the next', async () => {
    const lua = await start('examples/lua.c');

    expect(await lua.call('x = 5 return x')).toEqual({ error: 0, output: '5' });
    expect(await lua.call('x')).toEqual({ error: 0, output: 'nil' });
  });
});

describe('forklet-park', () => {
  test('prints requests when it is given no command', async () => {
    const program = await start('forklet-park.c');
    expect(await program.call('one\n')).toEqual({ error: 0, output: '' });
    expect(await program.call('two\n')).toEqual({ error: 0, output: '' });
    host = undefined;

    expect(await program.close()).toEqual({ code: 0, stdout: 'one\ntwo\n', stderr: '' });
  });

  test('runs its command for each request, with the request as its input', async () => {
    const program = await start('forklet-park.c', ['--', 'tr', 'a-z', 'A-Z']);

    expect(await program.call('hello')).toEqual({ error: 0, output: 'HELLO' });
    const large = 'x'.repeat(DATA_BYTES);
    expect(await program.call(large)).toEqual({ error: 0, output: large.toUpperCase() });
  });

  test('tells its command which machine it is in', async () => {
    const script = 'echo $FORKLET_GENERATION $FORKLET_SEQUENCE';
    const program = await start('forklet-park.c', ['sh', '-c', script]);

    const { output } = await program.call('', { generation: 0xabcn, sequence: 12n });

    expect(output).toBe('0000000000000abc 12\n');
  });

  test.each([
    ['with its errors', 'echo out; echo because >&2; exit 3', 'because\n'],
    ['with its exit code', 'exit 3', 'exit code 3'],
    ['with the signal that ended it', 'kill -KILL $$', 'signal 9'],
    ['when it says too much', 'yes | head -c 70000', 'output of the command: File too large'],
  ])('reports a command that fails, %s', async (_how, script, output) => {
    const program = await start('forklet-park.c', ['sh', '-c', script]);

    expect(await program.call('')).toEqual({ error: 1, output });
  });

  test('reports a command that does not exist', async () => {
    const program = await start('forklet-park.c', ['no-such-command']);

    expect(await program.call('')).toEqual({
      error: 1,
      output: 'no-such-command: No such file or directory',
    });
  });

  test('says where there is no device', async () => {
    const program = new ParkHost('env', [
      'FORKLET_TEST_DEVICE=/nowhere',
      programs['forklet-park.c'] ?? '',
    ]);

    expect(await program.exited).toMatchObject({
      code: 1,
      stderr: 'forklet-park: /nowhere: No such file or directory\n',
    });
    await program.close();
  });
});
