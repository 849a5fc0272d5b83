import { once } from 'node:events';

import { beforeEach, describe, expect, test } from 'vitest';

import { GuestFs } from '../../lib/guest-fs.js';
import type { AgentConnection } from '../../lib/internal/agent/connection.js';
import {
  encodeFrame,
  encodeRecord,
  type Frame,
  FrameType,
  Stream,
  Tag,
} from '../../lib/internal/protocol/protocol.js';
import { testGuest } from '../helpers/agent-guest.js';
import { scriptedAgent } from '../helpers/scripted-agent.js';

// A guest whose agent answers whatever a test wants.

const ECANCELED = 125;

let fs: GuestFs;
let agent: AgentConnection;
let requests: Frame[];
/** What the agent says to a file request. */
let answer: (id: number) => Buffer[];

beforeEach(() => {
  requests = [];
  agent = scriptedAgent(receive);
  fs = new GuestFs(testGuest('vm-test', agent, {}, {}));
});

function receive(frame: Frame): void {
  requests.push(frame);
  if (frame.type === FrameType.file) say(...answer(frame.id));
  if (frame.type === FrameType.cancel) say(reply(frame.id, ECANCELED));
}

function say(...frames: Buffer[]): void {
  // Later, as from another machine.
  setImmediate(() => agent.receive(Buffer.concat(frames)));
}

function reply(id: number, value = 0, payload: Buffer[] = []): Buffer {
  return encodeFrame({ type: FrameType.reply, id, value, payload });
}

function data(id: number, bytes: Buffer, offset = 0): Buffer {
  return encodeFrame({ type: FrameType.data, stream: Stream.output, id, offset, payload: [bytes] });
}

const BROKEN = { code: 'ERR_VM_AGENT_PROTOCOL' };

describe('a guest that', () => {
  test('answers readlink and stat without their contents is refused', async () => {
    answer = (id) => [reply(id)];

    await expect(fs.readlink('/x')).rejects.toMatchObject(BROKEN);
    await expect(fs.stat('/x')).rejects.toMatchObject(BROKEN);
  });

  test('answers realpath with NUL breaks the connection', async () => {
    answer = (id) => [reply(id, 0, [encodeRecord(Tag.path, Buffer.from('/a\0b'))])];

    await expect(fs.realpath('/x')).rejects.toMatchObject(BROKEN);
    await expect(fs.stat('/x')).rejects.toMatchObject(BROKEN);
  });

  test.each(['2e2e2f61', '2f61', '612f'])(
    'lists a tree with %s, which leads out of it, is refused',
    async (hex) => {
      const name = Buffer.from(hex, 'hex');
      const entry = Buffer.concat([Buffer.from([name.length, 0, 8, 0]), name]);
      answer = (id) => [data(id, entry), reply(id)];

      await expect(fs.readdir('/x', { recursive: true })).rejects.toMatchObject(BROKEN);
    },
  );

  test('lists a path where a name belongs is refused', async () => {
    answer = (id) => [data(id, Buffer.from('03000800612f62', 'hex')), reply(id)];

    await expect(fs.readdir('/x')).rejects.toMatchObject(BROKEN);
    expect(await fs.readdir('/x', { recursive: true })).toEqual(['a/b']);
  });

  test('sends a reader more than it asked for breaks the connection', async () => {
    answer = (id) => [data(id, Buffer.alloc(101))];
    const stream = fs.createReadStream('/x', { highWaterMark: 100 });

    const [error] = await once(stream, 'error').catch((reason: unknown) => [reason]);

    expect(error).toMatchObject(BROKEN);
  });

  test('ends a file without saying so has ended it', async () => {
    answer = (id) => [data(id, Buffer.from('abc')), reply(id)];

    expect(await fs.createReadStream('/x', 'utf8').toArray()).toEqual(['abc']);
  });

  test('is done with a file before it has the contents fails the next write', async () => {
    answer = (id) => [reply(id)];
    const stream = fs.createWriteStream('/x');
    await new Promise((resolve) => setTimeout(resolve, 20));

    stream.write('x');

    const [error] = await once(stream, 'error').catch((reason: unknown) => [reason]);
    expect(error).toMatchObject({ code: 'EPIPE' });
  });

  test('tells of changes that cannot be ends the watch, and nothing else', async () => {
    answer = (id) => [data(id, Buffer.from('00000400' + '00000900', 'hex'))];
    const watcher = fs.watch('/x');

    await expect(watcher.next()).rejects.toMatchObject(BROKEN);
    expect(await watcher.next()).toEqual({ done: true, value: undefined });
    expect(requests.map(({ type }) => type)).toEqual([FrameType.file, FrameType.cancel]);
    answer = (id) => [reply(id)];
    await fs.chmod('/x', 0);
  });

  test('tells of changes without end is stopped by the window', async () => {
    const event = Buffer.from('0100010061', 'hex');
    answer = (id) => [data(id, Buffer.concat(Array.from({ length: 3000 }, () => event)))];
    const watcher = fs.watch('/x');
    await watcher.next();
    await new Promise((resolve) => setTimeout(resolve, 20));

    // Nothing was granted beyond the first window, of which little has been taken.
    expect(requests.map(({ type }) => type)).toEqual([FrameType.file]);
    for (let i = 1; i < 3000; i++) await watcher.next();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(requests.map(({ type }) => type)).toEqual([FrameType.file, FrameType.window]);
    await watcher.return();
  });
});
