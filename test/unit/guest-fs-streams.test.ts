import { randomBytes } from 'node:crypto';
import diagnostics_channel from 'node:diagnostics_channel';
import { once } from 'node:events';
import * as host from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import type { DiagnosticsMessage } from '../../lib/index.js';
import { AgentGuest } from '../helpers/agent-guest.js';
import { end } from '../helpers/guest-files.js';

let guest: AgentGuest;

beforeAll(async () => {
  guest = await AgentGuest.start();
  await host.writeFile(guest.path('digits'), '0123456789');
});

afterAll(async () => {
  await guest.stop();
});

async function collect(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

function exists(path: string): Promise<boolean> {
  return host.stat(path).then(
    () => true,
    () => false,
  );
}

describe('createReadStream()', () => {
  test('yields a file of megabytes unharmed', async () => {
    const content = randomBytes(3_456_789);
    await host.writeFile(guest.path('large'), content);

    expect((await collect(guest.fs.createReadStream(guest.path('large')))).equals(content)).toBe(
      true,
    );
  });

  test.each([
    [{}, '0123456789'],
    [{ start: 3 }, '3456789'],
    [{ end: 3 }, '0123'],
    [{ start: 3, end: 3 }, '3'],
    [{ start: 8, end: 100 }, '89'],
    [{ start: 100 }, ''],
    [{ end: Infinity }, '0123456789'],
    [{ highWaterMark: 1 }, '0123456789'],
  ])('with %j yields what node:fs does', async (options, text) => {
    const stream = guest.fs.createReadStream(guest.path('digits'), options);

    expect((await collect(stream)).toString()).toBe(text);
  });

  test('with an encoding yields strings, whole characters each', async () => {
    await host.writeFile(guest.path('text'), 'ä€😀'.repeat(50));
    const options = { encoding: 'utf8', highWaterMark: 5 } as const;
    const chunks: string[] = [];
    for await (const chunk of guest.fs.createReadStream(guest.path('text'), options)) {
      chunks.push(chunk as string);
    }

    expect(chunks.length).toBeGreaterThan(10);
    expect(chunks.join('')).toBe('ä€😀'.repeat(50));
    const short = guest.fs.createReadStream(guest.path('digits'), 'base64');
    expect(await short.toArray()).toEqual([Buffer.from('0123456789').toString('base64')]);
  });

  test('fetches no more than its reader takes', async () => {
    const stream = guest.fs.createReadStream('/dev/zero', { highWaterMark: 10_000 });
    stream.read(0);
    for (let i = 0; i < 20; i++) await guest.fs.stat('/');

    expect(stream.readableLength).toBeLessThanOrEqual(20_000);
    await once(stream, 'readable');
    expect((stream.read() as Buffer).length).toBeLessThanOrEqual(20_000);
    stream.destroy();
    expect(await end(stream)).toBeUndefined();
  });

  test.each([
    ['a missing file', 'none', 'ENOENT', 'open'],
    ['a directory', '', 'EISDIR', 'read'],
    ['what is below a file', 'digits/x', 'ENOTDIR', 'open'],
  ])('of %s fails as node:fs does', async (_, name, code, syscall) => {
    const path = guest.path(name);

    expect(await end(guest.fs.createReadStream(path).resume())).toMatchObject({
      code,
      syscall,
      path,
    });
  });

  test('ends with AbortError when it is aborted, after the guest has let go', async () => {
    const controller = new AbortController();
    const stream = guest.fs.createReadStream('/dev/zero', { signal: controller.signal });
    await once(stream, 'readable');
    controller.abort('enough');

    expect(await end(stream)).toMatchObject({ name: 'AbortError', cause: 'enough' });
    expect(guest.hold.held).toBe(0);
  });

  test('aborted beforehand sends nothing', async () => {
    const sends = guest.sends.length;
    const stream = guest.fs.createReadStream('/dev/zero', { signal: AbortSignal.abort('no') });

    expect(await end(stream)).toMatchObject({ name: 'AbortError', cause: 'no' });
    expect(guest.sends.length).toBe(sends);
  });

  test('of a FIFO waits for data, and lets go when it is destroyed', async () => {
    await guest.exec(['mkfifo', guest.path('fifo')]);
    const ready = guest.path('fifo-ready');
    const writer = guest.exec(`exec 3<>${guest.path('fifo')}; : >${ready}; echo now >&3; sleep 60`);
    void writer.catch(() => {});
    await expect.poll(() => exists(ready)).toBe(true);
    const stream = guest.fs.createReadStream(guest.path('fifo'), 'utf8');
    const [chunk] = await once(stream, 'data');
    stream.destroy();
    await end(stream);
    writer.kill('SIGKILL');
    await writer;

    expect(chunk).toBe('now\n');
    expect(guest.hold.held).toBe(0);
  });

  test('tells the diagnostics channel its end', async () => {
    const messages: DiagnosticsMessage[] = [];
    const listener = (message: unknown): void => void messages.push(message as DiagnosticsMessage);
    diagnostics_channel.subscribe('forklet:fs', listener);
    await collect(guest.fs.createReadStream(guest.path('digits'), { start: 2 }));
    await end(guest.fs.createReadStream(guest.path('none')));
    await end(guest.fs.createWriteStream(guest.path('told')).end('12'));
    diagnostics_channel.unsubscribe('forklet:fs', listener);

    expect(messages).toMatchObject([
      {
        operation: 'createReadStream',
        arguments: { start: 2 },
        outcome: 'ok',
        result: { bytes: 8 },
      },
      { operation: 'createReadStream', outcome: 'error', errorCode: 'ENOENT' },
      { operation: 'createWriteStream', outcome: 'ok', result: { bytes: 2 } },
    ]);
  });
});

describe('createWriteStream()', () => {
  test('writes megabytes unharmed, and is finished when they are there', async () => {
    const content = randomBytes(3_456_789);
    const pieces = Array.from({ length: 100 }, (_, i) =>
      content.subarray(i * 40_000, (i + 1) * 40_000),
    );

    await pipeline(Readable.from(pieces), guest.fs.createWriteStream(guest.path('out')));

    expect((await host.readFile(guest.path('out'))).equals(content)).toBe(true);
  });

  test.each([
    [{}, 'xx'],
    [{ flags: 'w', start: 3 }, '\0\0\0xx'],
    [{ flags: 'r+' }, 'xx23456789'],
    [{ flags: 'r+', start: 3 }, '012xx56789'],
    [{ flags: 'r+', start: 12 }, '0123456789\0\0xx'],
    [{ flags: 'a' }, '0123456789xx'],
    [{ encoding: 'hex' }, 'xx'],
  ] as const)('with %j writes as node:fs does', async (options, text) => {
    const path = guest.path('in-place');
    await host.writeFile(path, '0123456789');
    const contents = 'encoding' in options ? '7878' : 'xx';

    const stream = guest.fs.createWriteStream(path, options);
    stream.end(contents);

    expect(await end(stream)).toBeUndefined();
    expect(await host.readFile(path, 'utf8')).toBe(text);
  });

  test('creates with a mode, also an empty file', async () => {
    await end(guest.fs.createWriteStream(guest.path('tool'), { mode: 0o700, flags: 'wx' }).end());

    expect(await host.stat(guest.path('tool'))).toMatchObject({ size: 0 });
    expect((await host.stat(guest.path('tool'))).mode & 0o777).toBe(0o700);
  });

  test.each([
    ['wx of an existing file', 'digits', { flags: 'wx' }, 'EEXIST', 'open'],
    ['r+ of a missing file', 'none', { flags: 'r+' }, 'ENOENT', 'open'],
    ['a directory', '', {}, 'EISDIR', 'open'],
  ] as const)(
    '%s fails as node:fs does, without a write',
    async (_, name, options, code, syscall) => {
      const path = guest.path(name);

      expect(await end(guest.fs.createWriteStream(path, options))).toMatchObject({
        code,
        syscall,
        path,
      });
    },
  );

  test('fails when the device is full, with the guest’s error for the write', async () => {
    const stream = guest.fs.createWriteStream('/dev/full');
    const failure = end(stream);
    const written = new Promise((resolve) => stream.write(Buffer.alloc(3_000_000), resolve));

    expect(await written).toMatchObject({ code: 'ENOSPC', syscall: 'write' });
    expect(await failure).toMatchObject({ code: 'ENOSPC' });
  });

  test('waits for a guest that takes nothing, and goes on when it does', async () => {
    await guest.exec(['mkfifo', guest.path('slow')]);
    const ready = guest.path('slow-ready');
    const reader = guest.exec(
      `exec 3<>${guest.path('slow')}; : >${ready}; while ! [ -e ${ready}-go ]; do sleep 0.05; done; head -c 4000000 <&3 | wc -c`,
    );
    void reader.catch(() => {});
    await expect.poll(() => exists(ready)).toBe(true);
    const stream = guest.fs.createWriteStream(guest.path('slow'));
    let written = 0;
    const chunk = Buffer.alloc(100_000);
    const source = Readable.from(
      (function* () {
        for (; written < 4_000_000; written += chunk.length) yield chunk;
      })(),
      { highWaterMark: 1 },
    );
    const piped = pipeline(source, stream);
    for (let i = 0; i < 50; i++) await guest.fs.stat('/');

    // A pipe, the agent's window, and what is buffered here.
    expect(written).toBeLessThan(1_500_000);
    await guest.fs.writeFile(`${ready}-go`, '');
    await piped;
    expect((await reader).stdout.trim()).toBe('4000000');
  });

  test('ends with AbortError when it is aborted, and what was written stays', async () => {
    const controller = new AbortController();
    const path = guest.path('half');
    const stream = guest.fs.createWriteStream(path, { signal: controller.signal });
    await new Promise((resolve) => stream.write('half', resolve));
    await guest.fs.stat(path);
    controller.abort('enough');

    expect(await end(stream)).toMatchObject({ name: 'AbortError', cause: 'enough' });
    expect(await host.readFile(path, 'utf8')).toBe('half');
    expect(guest.hold.held).toBe(0);
  });

  test('destroyed lets go of the file', async () => {
    const stream = guest.fs.createWriteStream(guest.path('dropped'));
    stream.write('x');
    stream.destroy();

    expect(await end(stream)).toBeUndefined();
    expect(guest.hold.held).toBe(0);
  });
});

describe('arguments', () => {
  test.each<[string, () => unknown, typeof TypeError | typeof RangeError, string]>([
    ['a path', () => guest.fs.createReadStream(5 as never), TypeError, 'path'],
    [
      'an unknown option',
      () => guest.fs.createReadStream('/x', { from: 1 } as never),
      TypeError,
      'from',
    ],
    ['a negative start', () => guest.fs.createReadStream('/x', { start: -1 }), RangeError, 'start'],
    [
      'an end before the start',
      () => guest.fs.createReadStream('/x', { start: 2, end: 1 }),
      RangeError,
      'end',
    ],
    [
      'no bytes ahead',
      () => guest.fs.createReadStream('/x', { highWaterMark: 0 }),
      RangeError,
      'highWaterMark',
    ],
    [
      'a wrong flag',
      () => guest.fs.createWriteStream('/x', { flags: 'w+' as never }),
      TypeError,
      'flags',
    ],
    [
      'a start for appending',
      () => guest.fs.createWriteStream('/x', { flags: 'a', start: 1 }),
      TypeError,
      'start',
    ],
    [
      'a wrong signal',
      () => guest.fs.createWriteStream('/x', { signal: 5 as never }),
      TypeError,
      'signal',
    ],
  ])('refuse %s at once and name it', (_, call, type, name) => {
    expect(call).toThrow(type);
    expect(call).toThrow(name);
  });
});

describe('when the guest is gone', () => {
  test('streams fail with its error, after what had arrived', async () => {
    const other = await AgentGuest.start();
    const reading = other.fs.createReadStream('/dev/zero');
    const writing = other.fs.createWriteStream(other.path('x'));
    await once(reading, 'readable');
    const failures = Promise.all([end(reading), end(writing)]);

    other.agent.fail(() => Object.assign(new Error('gone'), { code: 'ERR_VM_EXITED' }));

    expect(await failures).toMatchObject([{ code: 'ERR_VM_EXITED' }, { code: 'ERR_VM_EXITED' }]);
    const late = await end(other.fs.createReadStream('/dev/zero'));
    expect(late).toMatchObject({ code: 'ERR_VM_EXITED' });
    expect(other.hold.held).toBe(0);
    await other.stop();
  });
});
