import { existsSync } from 'node:fs';
import { constants } from 'node:os';

import { afterEach, describe, expect, test } from 'vitest';

import {
  encodeCancel,
  encodeData,
  encodeEnd,
  encodeExec,
  encodeFrame,
  encodePing,
  encodeReadFile,
  encodeRecord,
  encodeStat,
  encodeWriteFile,
  FILE_WINDOW_BYTES,
  FileOp,
  FrameType,
  INPUT_WINDOW_BYTES,
  MAX_OPERATIONS,
  Stream,
  Tag,
} from '../../lib/internal/protocol/protocol.js';
import { buildHostAgent, HostAgent, WIDE_OPEN } from '../helpers/host-agent.js';

const { EPROTO, EAGAIN } = constants.errno;

const path = buildHostAgent();
let agent: HostAgent | null = null;

function start(): HostAgent {
  agent = new HostAgent(path);
  return agent;
}

afterEach(async () => {
  const exit = await agent?.close();
  expect(exit).toEqual({ code: 0, signal: null, stderr: '' });
});

async function ping(target: HostAgent): Promise<number> {
  return (await target.start((id) => encodePing(id)).done).errno;
}

describe('the agent answers EPROTO, and goes on, after', () => {
  test.each([
    ['a request of an unknown type', (id: number) => encodeFrame({ type: 77, id })],
    ['a frame that only the guest sends', (id: number) => encodeFrame({ type: 34, id })],
    [
      'an unknown file request',
      (id: number) => encodeFrame({ type: FrameType.file, id, value: 99 }),
    ],
    [
      'a file request without a path',
      (id: number) => encodeFrame({ type: FrameType.file, id, value: 3 }),
    ],
    [
      'a file request without its second path',
      (id: number) =>
        encodeFrame({
          type: FrameType.file,
          id,
          value: FileOp.rename,
          payload: [encodeRecord(Tag.path, '/')],
        }),
    ],
    ['an exec without arguments', (id: number) => encodeFrame({ type: FrameType.exec, id })],
    [
      'a record of an unknown kind',
      (id: number) =>
        encodeFrame({
          type: FrameType.exec,
          id,
          payload: [encodeRecord(Tag.arg, 'true'), encodeRecord(99, '')],
        }),
    ],
    [
      'a record that reaches beyond its frame',
      (id: number) =>
        encodeFrame({
          type: FrameType.exec,
          id,
          payload: [Buffer.from('04000000ffffffff', 'hex')],
        }),
    ],
    [
      'half a record',
      (id: number) => encodeFrame({ type: FrameType.exec, id, payload: [Buffer.alloc(5)] }),
    ],
    [
      'an argument with a null byte',
      (id: number) =>
        encodeFrame({
          type: FrameType.exec,
          id,
          payload: [encodeRecord(Tag.arg, Buffer.from('a\0b'))],
        }),
    ],
    [
      'a number of another size',
      (id: number) =>
        encodeFrame({
          type: FrameType.exec,
          id,
          payload: [encodeRecord(Tag.arg, 'true'), encodeRecord(Tag.flags, Buffer.alloc(8))],
        }),
    ],
    [
      'a configuration of an unknown kind',
      (id: number) =>
        encodeFrame({ type: FrameType.configure, id, payload: [encodeRecord(Tag.path, '/')] }),
    ],
  ])('%s', async (_name, encode) => {
    const target = start();

    expect((await target.start(encode).done).errno).toBe(EPROTO);

    expect(await ping(target)).toBe(0);
  });

  test('input beyond the window: the command is killed', async () => {
    const target = start();
    const operation = target.spawn(['sleep', '60'], { stdin: true });
    for (let at = 0; at < 4 * INPUT_WINDOW_BYTES; at += INPUT_WINDOW_BYTES) {
      target.send(encodeData(operation.id, at, Buffer.alloc(INPUT_WINDOW_BYTES)));
    }

    expect(await operation.done).toMatchObject({ errno: EPROTO, signal: 9 });
    expect(await ping(target)).toBe(0);
  });

  test.each([
    ['input at another offset', (id: number) => encodeData(id, 5, Buffer.from('x'))],
    ['empty input', (id: number) => encodeFrame({ type: FrameType.data, id })],
    ['an end at another offset', (id: number) => encodeEnd(id, 1)],
    [
      'an end with contents',
      (id: number) => encodeFrame({ type: FrameType.end, id, payload: [Buffer.from('x')] }),
    ],
    [
      'input for an output stream',
      (id: number) =>
        encodeFrame({
          type: FrameType.data,
          id,
          stream: Stream.output,
          payload: [Buffer.from('x')],
        }),
    ],
  ])('%s: the write fails', async (_name, encode) => {
    const target = start();
    const operation = target.start((id) => encodeWriteFile(id, '/dev/null'), FILE_WINDOW_BYTES);
    target.send(encode(operation.id));

    expect(await operation.done).toMatchObject({ errno: EPROTO });
    expect(await ping(target)).toBe(0);
  });

  test('input for an operation that takes none', async () => {
    const target = start();
    const operation = target.start((id) => encodeReadFile(id, '/dev/zero'));
    target.send(encodeData(operation.id, 0, Buffer.from('x')));

    expect(await operation.done).toMatchObject({ errno: EPROTO });
  });
});

describe('the agent takes no notice of', () => {
  test('frames for operations that are over, or never were', async () => {
    const target = start();
    for (const type of [
      FrameType.signal,
      FrameType.cancel,
      FrameType.data,
      FrameType.end,
      FrameType.window,
    ]) {
      target.send(encodeFrame({ type, id: 12345, value: 9, offset: 7 }));
    }

    expect(await ping(target)).toBe(0);
    expect(target.other).toMatchObject([{ type: 'hello' }]);
  });

  test('a window of a stream that does not exist', async () => {
    const target = start();
    const operation = target.spawn(['sleep', '0.1']);
    target.send(encodeFrame({ type: FrameType.window, id: operation.id, stream: 9, offset: 100 }));

    expect(await operation.done).toMatchObject({ exitCode: 0 });
  });
});

describe('the agent says why, and closes the connection, after', () => {
  test('a frame that is too large', async () => {
    const target = start();
    const header = encodeStat(1, '/');
    header.writeUInt32LE(65537, 0);
    target.send(header);

    expect((await target.exited).code).toBe(0);
    expect(target.other.at(-1)).toEqual({ type: 'fatal', reason: 'frame is too large' });
  });

  test('an exec request that is too large', async () => {
    const target = start();
    const header = encodeFrame({ type: FrameType.exec, id: 1 });
    header.writeUInt32LE(2097153, 0);
    target.send(header);

    expect((await target.exited).code).toBe(0);
    expect(target.other.at(-1)).toEqual({ type: 'fatal', reason: 'frame is too large' });
  });

  test('an id that is in use', async () => {
    const target = start();
    const operation = target.spawn(['sleep', '60']);
    target.send(encodePing(operation.id));

    expect((await target.exited).code).toBe(0);
    expect(target.other.at(-1)).toEqual({ type: 'fatal', reason: 'operation id is in use' });
  });
});

describe('the agent ends, and its commands with it, after', () => {
  test('half a frame and the end of the connection', async () => {
    const target = start();
    target.send(encodePing(1).subarray(0, 10));

    expect((await target.close()).code).toBe(0);
  });

  test('the connection is lost under a running command', async () => {
    const target = start();
    const operation = target.spawn(['sh', '-c', 'echo $$; exec sleep 60']);
    await operation.until((o) => o.received(Stream.output).length > 0);
    const pid = Number(operation.received(Stream.output).toString());

    await target.close();

    // Killed, it is a zombie until somebody reaps it.
    await expect.poll(() => existsSync(`/proc/${pid}/exe`)).toBe(false);
  });
});

test('as many operations as are allowed live together, and one more is refused', async () => {
  const target = start();
  const operations = Array.from({ length: MAX_OPERATIONS }, () =>
    target.start((id) => encodeReadFile(id, '/dev/zero', { outputLimit: 1 })),
  );
  await operations.at(-1)?.until((o) => o.received(Stream.output).length === 1);

  expect((await target.exec(['true'])).errno).toBe(EAGAIN);
  expect(await ping(target)).toBe(0);

  target.send(...operations.map(({ id }) => encodeCancel(id)));
  await Promise.all(operations.map(({ done }) => done));
  expect((await target.exec(['true'])).errno).toBe(0);
});

test('a host that asks and does not listen gets its answers when it does', async () => {
  const target = start();
  await ping(target);
  target.socket.pause();
  const reads = Array.from({ length: 8 }, () =>
    target.start((id) =>
      encodeReadFile(id, '/dev/zero', { outputLimit: WIDE_OPEN, byteCount: 2_000_000 }),
    ),
  );
  const stats = Array.from({ length: 20_000 }, () => target.start((id) => encodeStat(id, '/')));
  await new Promise((resolve) => setTimeout(resolve, 300));
  target.socket.resume();

  for (const { done } of reads) expect((await done).stdout).toHaveLength(2_000_000);
  for (const { done } of stats) expect((await done).errno).toBe(0);
});

test('an exec request that arrives byte by byte is run', async () => {
  const target = start();
  const request = {
    args: ['printf', '%s', 'x'.repeat(70_000)],
    stdout: true,
    outputLimit: WIDE_OPEN,
  };
  const bytes = encodeExec(1, request);
  const operation = target.start(() => bytes.subarray(0, 1));
  for (let at = 1; at < bytes.length; at += at < 200 ? 1 : 997) {
    target.socket.write(bytes.subarray(at, at < 200 ? at + 1 : at + 997));
    if (at < 200 || at % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
  }

  expect((await operation.done).stdout).toHaveLength(70_000);
});
