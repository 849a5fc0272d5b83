import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';

import { beforeEach, describe, expect, test } from 'vitest';

import type { AgentConnection } from '../../lib/internal/agent/connection.js';
import { connect, waitForPort } from '../../lib/internal/connect/connect.js';
import {
  encodeFrame,
  type Frame,
  FrameType,
  Stream,
} from '../../lib/internal/protocol/protocol.js';
import type { Guest } from '../../lib/internal/vm/guest.js';
import { CountingHold, testGuest } from '../helpers/agent-guest.js';
import { scriptedAgent } from '../helpers/scripted-agent.js';

// A guest whose agent answers whatever a test wants.

const BROKEN = { code: 'ERR_VM_AGENT_PROTOCOL' };

let guest: Guest;
let agent: AgentConnection;
let hold: CountingHold;
/** What the agent says to a request. */
let answer: (id: number) => Buffer[];

beforeEach(() => {
  hold = new CountingHold();
  agent = scriptedAgent(receive, hold);
  guest = testGuest('vm-test', agent, {}, {});
});

function receive({ type, id }: Frame): void {
  if (type === FrameType.connect || type === FrameType.waitPort) say(...answer(id));
  if (type === FrameType.cancel) say(reply(id, 125));
}

function say(...frames: Buffer[]): void {
  // Later, as from another machine.
  setImmediate(() => agent.receive(Buffer.concat(frames)));
}

function reply(id: number, value = 0): Buffer {
  return encodeFrame({ type: FrameType.reply, id, value });
}

function connected(id: number): Buffer {
  return encodeFrame({ type: FrameType.connected, id });
}

function data(id: number, bytes: number): Buffer {
  const payload = [Buffer.alloc(bytes)];
  return encodeFrame({ type: FrameType.data, stream: Stream.output, id, payload });
}

describe('a guest that', () => {
  test('ends a connection before there is one is refused', async () => {
    answer = (id) => [reply(id)];

    await expect(connect(guest, 80)).rejects.toMatchObject(BROKEN);
    expect(hold.held).toBe(0);
  });

  test('breaks a connection at once is heard by who listens when the promise has resolved', async () => {
    answer = (id) => [connected(id), data(id, 3), reply(id, 104)];

    const client = await connect(guest, 80);

    expect(await once(client, 'error')).toMatchObject([{ code: 'ECONNRESET', syscall: 'read' }]);
  });

  test('connects twice breaks the connection', async () => {
    answer = (id) => [connected(id), connected(id)];

    const client = await connect(guest, 80);

    expect(await once(client, 'error')).toMatchObject([BROKEN]);
  });

  test('connects what waits for a port breaks the connection', async () => {
    answer = (id) => [connected(id)];

    await expect(waitForPort(guest, 80)).rejects.toMatchObject(BROKEN);
  });

  test('sends more than was asked for breaks the connection', async () => {
    answer = (id) => [connected(id), data(id, 101)];

    const client = await connect(guest, 80, { highWaterMark: 100 });

    expect(await once(client, 'error')).toMatchObject([BROKEN]);
  });

  test('makes up an errno fails that connection alone', async () => {
    answer = (id) => [reply(id, 4000)];

    await expect(connect(guest, 80)).rejects.toMatchObject({ code: 'UNKNOWN_4000', errno: -4000 });
    await expect(waitForPort(guest, 80)).rejects.toMatchObject({ syscall: 'waitForPort' });
    expect(hold.held).toBe(0);
  });

  test('is done with a connection before this end is fails the next write', async () => {
    answer = (id) => [connected(id), data(id, 3), reply(id)];
    const client = await connect(guest, 80, { allowHalfOpen: true });
    const failed = once(client, 'error');
    client.resume();
    await once(client, 'end');

    client.write('more');

    expect(await failed).toMatchObject([{ code: 'EPIPE', syscall: 'write' }]);
  });

  test('sends single bytes to who does not read makes it keep little more than those', async () => {
    const bytes = Array.from({ length: 10_000 }, (_, i) => i % 251);
    answer = (id) => [
      connected(id),
      ...bytes.map((byte, offset) =>
        encodeFrame({
          type: FrameType.data,
          stream: Stream.output,
          id,
          offset,
          payload: [Buffer.from([byte])],
        }),
      ),
      encodeFrame({ type: FrameType.end, stream: Stream.output, id, offset: bytes.length }),
    ];
    const client = await connect(guest, 80);
    await once(client, 'readable');
    await delay(20);

    const chunks: Buffer[] = [];
    client.on('data', (chunk: Buffer) => chunks.push(chunk));
    await once(client, 'end');

    expect(Buffer.concat(chunks).equals(Buffer.from(bytes))).toBe(true);
    expect(chunks.length).toBeLessThan(10);
    client.destroy();
  });

  test('never answers holds nobody beyond the deadline', async () => {
    answer = () => [];

    const connecting = connect(guest, 80, { timeoutMs: 20 });
    const waiting = waitForPort(guest, 80, { timeoutMs: 20 });

    await expect(connecting).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT' });
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT' });
  });
});
