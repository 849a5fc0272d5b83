import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import { checkForward } from '../../lib/internal/connect/options.js';
import type { PortForward } from '../../lib/port-forward.js';
import { AgentGuest } from '../helpers/agent-guest.js';
import { tcpServers } from '../helpers/tcp-servers.js';

// Forwards to the real agent: its "guest" is this machine, but the bytes go through the agent.

let guest: AgentGuest;
let vmExits: () => void;
let exited: Promise<void>;
let forwards: PortForward[];
const servers = tcpServers();

beforeEach(async () => {
  guest = await AgentGuest.start();
  exited = new Promise((resolve) => {
    vmExits = resolve;
  });
  forwards = [];
});

afterEach(async () => {
  for (const forward of forwards) await forward.close();
  await guest.stop();
});

async function forward(guestPort: number): Promise<PortForward> {
  const made = await guest.forward({ guestPort }, exited);
  forwards.push(made);
  return made;
}

function dial({ host, port }: PortForward): Socket {
  return createConnection({ host, port, allowHalfOpen: true });
}

/** Code of the error that a socket ends with; `undefined` for none. */
async function failure(socket: Socket): Promise<string | undefined> {
  const [error] = (await Promise.race([
    new Promise((resolve) => socket.once('error', (reason) => resolve([reason]))),
    once(socket, 'close').catch((reason: unknown) => [reason]),
  ])) as [NodeJS.ErrnoException | boolean];
  return typeof error === 'object' ? error.code : undefined;
}

describe('a forward', () => {
  test('carries many connections at once, and their ends both ways', async () => {
    const { host, port, guestPort } = await forward(
      await servers.listen((socket) => socket.pipe(socket)),
    );
    const clients = Array.from({ length: 20 }, () => createConnection({ host, port }));
    for (const [index, client] of clients.entries()) client.end(`hello ${index}`);

    const answers = await Promise.all(clients.map(text));

    expect(answers).toEqual(clients.map((_, index) => `hello ${index}`));
    expect(host).toBe('127.0.0.1');
    expect(guestPort).not.toBe(port);
  });

  test('lets the guest answer after the client has ended', async () => {
    const made = await forward(
      await servers.listen((socket) => {
        socket.resume();
        socket.on('end', () => socket.end('after the end'));
      }),
    );
    const client = dial(made);
    client.end('request');

    expect(await text(client)).toBe('after the end');
  });

  test('resets a client that the guest refuses, and one that it resets', async () => {
    const refused = await servers.freePort();
    const resetting = await servers.listen((socket) => {
      socket.once('data', () => socket.resetAndDestroy());
    });

    const first = dial(await forward(refused));
    const second = dial(await forward(resetting));
    second.write('now');

    expect(await failure(first)).toBe('ECONNRESET');
    expect(await failure(second)).toBe('ECONNRESET');
  });

  test('resets the guest when the client breaks off', async () => {
    let take: (socket: Socket) => void = () => {};
    const accepted = new Promise<Socket>((resolve) => {
      take = resolve;
    });
    const client = dial(await forward(await servers.listen(take)));
    client.write('some');
    const socket = await accepted;
    // libuv takes a reset right behind data for an end.
    await once(socket, 'data');
    const failed = once(socket, 'error');

    client.resetAndDestroy();

    expect(await failed).toMatchObject([{ code: 'ECONNRESET' }]);
    while (guest.hold.held > 0) await delay(5);
  });

  test('closes more than once, with its connections', async () => {
    const made = await forward(await servers.listen(() => {}));
    const client = dial(made);
    await once(client, 'connect');
    const failed = failure(client);

    await Promise.all([made.close(), made.close()]);

    expect(await failed).toBe('ECONNRESET');
    expect(await failure(dial(made))).toBe('ECONNREFUSED');
    while (guest.hold.held > 0) await delay(5);
  });

  test('closes with the VM', async () => {
    const made = await forward(await servers.listen(() => {}));

    vmExits();
    while ((await failure(dial(made))) !== 'ECONNREFUSED') await delay(5);

    guest.agent.fail(() => new Error('the VM is gone'));
    await expect(guest.forward({ guestPort: 80 }, exited)).rejects.toThrow('the VM is gone');
  });

  test('of a port that is taken is refused as by node:net', async () => {
    const { port } = await forward(80);

    await expect(guest.forward({ guestPort: 80, hostPort: port }, exited)).rejects.toMatchObject({
      code: 'EADDRINUSE',
      syscall: 'listen',
      port,
    });
  });

  test('stops reading a client when the guest does not read', async () => {
    let take: (socket: Socket) => void = () => {};
    const accepted = new Promise<Socket>((resolve) => {
      take = resolve;
    });
    const client = dial(await forward(await servers.listen(take)));
    const bytes = Buffer.alloc(30_000_000);
    client.resume().end(bytes);
    const socket = await accepted;
    let before = -1;
    while (before !== client.bytesWritten - client.writableLength) {
      before = client.bytesWritten - client.writableLength;
      await delay(100);
    }
    expect(client.writableFinished).toBe(false);

    let received = 0;
    socket.on('data', (chunk: Buffer) => {
      received += chunk.length;
    });
    await once(socket, 'end');
    expect(received).toBe(bytes.length);
    socket.end();
    if (!client.closed) await once(client, 'close');
  });
});

test.each([
  [{}, TypeError, /guestPort/],
  [undefined, TypeError, /guestPort/],
  [{ guestPort: 0 }, RangeError, /guestPort/],
  [{ guestPort: 80, hostPort: 65_536 }, RangeError, /hostPort/],
  [{ guestPort: 80, host: '0.0.0.0' }, RangeError, /this host only/],
  [{ guestPort: 80, port: 80 }, TypeError, /Unknown option "port"/],
])('forward() refuses the options %o', (options, kind, message) => {
  const check = (): unknown => checkForward(options as never);

  expect(check).toThrow(kind);
  expect(check).toThrow(message);
});
