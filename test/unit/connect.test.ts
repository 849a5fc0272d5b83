import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import { AgentGuest } from '../helpers/agent-guest.js';
import { buffer, tcpServers, text } from '../helpers/tcp-servers.js';

// Connections as callers have them, to the real agent: its "guest" is this machine.

let guest: AgentGuest;
const servers = tcpServers();

beforeEach(async () => {
  guest = await AgentGuest.start();
});

afterEach(async () => {
  await guest.stop();
});

/** Both ends of a connection. */
async function pair(
  options: Parameters<AgentGuest['connect']>[1] = {},
): Promise<{ client: Duplex; server: Socket }> {
  let take: (socket: Socket) => void = () => {};
  const accepted = new Promise<Socket>((resolve) => {
    take = resolve;
  });
  const client = await guest.connect(await servers.listen(take), options);
  return { client, server: await accepted };
}

/** Resolves when nothing of the guest is under way any more. */
async function idle(): Promise<void> {
  while (guest.hold.held > 0) await delay(5);
}

describe('a connection', () => {
  test('carries bytes both ways and ends by itself', async () => {
    const { client, server } = await pair();
    server.pipe(server);
    client.end('hello');

    expect(await text(client)).toBe('hello');

    if (!client.closed) await once(client, 'close');
    expect(client.errored).toBeNull();
    await idle();
  });

  test('has what the guest said before anybody could listen', async () => {
    const port = await servers.listen((socket) => socket.end('greeting'));

    const client = await guest.connect(port);

    expect(await text(client)).toBe('greeting');
    await idle();
  });

  test('carries megabytes both ways at once', async () => {
    const bytes = randomBytes(5_000_000);
    const { client, server } = await pair();
    server.pipe(server);

    const [, echoed] = await Promise.all([
      pipeline([bytes.subarray(0, 1_000_000), bytes.subarray(1_000_000)], client, { end: true }),
      buffer(client),
    ]);

    expect(sha256(echoed)).toBe(sha256(bytes));
  });

  test('is refused as by node:net', async () => {
    const port = await servers.freePort();

    await expect(guest.connect(port)).rejects.toMatchObject({
      message: `connect ECONNREFUSED 127.0.0.1:${port}`,
      code: 'ECONNREFUSED',
      errno: -111,
      syscall: 'connect',
      address: '127.0.0.1',
      port,
    });
    await idle();
  });

  test('that goes half way: the guest has ended, and this end goes on', async () => {
    const { client, server } = await pair({ allowHalfOpen: true });
    server.end('bye');
    expect(await text(client)).toBe('bye');
    expect(client.destroyed).toBe(false);

    client.end('after that');

    expect(await text(server)).toBe('after that');
    await idle();
  });

  test('ends with the guest unless it may go half way', async () => {
    const { client, server } = await pair();
    server.end('bye');
    server.resume();

    expect(await text(client)).toBe('bye');

    if (!client.closed) await once(client, 'close');
    expect(client.writableFinished).toBe(true);
    await idle();
  });

  test('that goes half way the other way: this end is done, and the guest goes on', async () => {
    const { client, server } = await pair();
    client.end('question');
    expect(await text(server)).toBe('question');

    server.end('answer');

    expect(await text(client)).toBe('answer');
    await idle();
  });
});

describe('breaks', () => {
  test('a reset is ECONNRESET', async () => {
    const { client, server } = await pair();
    const failed = once(client, 'error');

    server.resetAndDestroy();

    expect(await failed).toMatchObject([
      { code: 'ECONNRESET', errno: -104, syscall: 'read', message: 'read ECONNRESET' },
    ]);
    expect(client.destroyed).toBe(true);
    await idle();
  });

  test('a reset that nobody listens to ends nothing else', async () => {
    const { client, server } = await pair();

    server.resetAndDestroy();

    while (!client.closed) await delay(5);
    expect(client.errored).toMatchObject({ code: 'ECONNRESET' });
  });

  test('writing to a guest that has closed is EPIPE or ECONNRESET', async () => {
    const { client, server } = await pair({ allowHalfOpen: true });
    client.resume();
    server.destroy();
    await once(client, 'end');
    const failed = once(client, 'error');

    const timer = setInterval(() => client.write('anybody?'), 10);

    expect(await failed).toMatchObject([{ code: 'EPIPE', syscall: 'write' }]);
    clearInterval(timer);
    await idle();
  });

  test('destroy() ends it for the guest', async () => {
    const { client, server } = await pair();
    client.write('some');
    const [received] = (await once(server, 'data')) as [Buffer];
    const ended = once(server, 'end');

    client.destroy();

    await ended;
    expect(received.toString()).toBe('some');
    await idle();
  });

  test('destroy() with an error, or with bytes that are not sent, is a reset for the guest', async () => {
    const first = await pair();
    const second = await pair();
    first.server.resume();
    const failures = [first, second].map(({ server }) => once(server, 'error'));
    second.client.write(Buffer.alloc(20_000_000));

    first.client.on('error', () => {});
    first.client.destroy(new Error('enough'));
    second.client.destroy();
    second.server.resume();

    for (const failed of failures) expect(await failed).toMatchObject([{ code: 'ECONNRESET' }]);
    await idle();
  });
});

describe('backpressure', () => {
  test('a reader that stops has little in its memory, and the guest waits', async () => {
    const { client, server } = await pair({ highWaterMark: 10_000 });
    let taken = 0;
    const chunk = Buffer.alloc(100_000);
    const push = (): void => void (server.write(chunk, () => (taken += chunk.length)) && push());
    server.on('drain', push);
    push();
    client.once('readable', () => {});
    await delay(200);

    expect(client.readableLength).toBeLessThanOrEqual(20_000);
    server.destroy();
    client.destroy();
  });

  test('a guest that does not read stops the writer', async () => {
    const { client, server } = await pair();
    let taken = 0;
    const chunk = Buffer.alloc(100_000);
    const push = (): void => {
      client.write(chunk, (error) => {
        if (error) return;
        taken += chunk.length;
        push();
      });
    };
    push();
    let before = -1;
    while (before !== taken) {
      before = taken;
      await delay(100);
    }

    server.resume();
    while (taken < before + 10 * chunk.length) await delay(5);
    client.destroy();
    await idle();
  });
});

describe('deadlines', () => {
  test.each([
    ['no port', undefined, TypeError],
    ['text', '80', TypeError],
    ['port 0', 0, RangeError],
    ['port 65536', 65_536, RangeError],
    ['a part of a port', 80.5, RangeError],
  ])('%s is no port', async (_name, port, kind) => {
    await expect(guest.connect(port as number)).rejects.toThrow(kind);
    await expect(guest.waitForPort(port as number)).rejects.toThrow(kind);
  });

  test.each([
    [{ timeout: 5 }, TypeError, /did you mean "timeoutMs"/],
    [{ timeoutMs: 0 }, RangeError, /timeoutMs/],
    [{ signal: 'now' }, TypeError, /signal/],
    [{ highWaterMark: 0 }, RangeError, /highWaterMark/],
    [{ allowHalfOpen: 1 }, TypeError, /allowHalfOpen/],
  ])('connect() refuses the options %o', async (options, kind, message) => {
    const connecting = guest.connect(80, options as object);

    await expect(connecting).rejects.toThrow(kind);
    await expect(connecting).rejects.toThrow(message);
  });

  test.each([
    [{ interval: 5 }, TypeError, /did you mean "intervalMs"/],
    [{ intervalMs: 0 }, RangeError, /intervalMs/],
  ])('waitForPort() refuses the options %o', async (options, kind, message) => {
    const waiting = guest.waitForPort(80, options as object);

    await expect(waiting).rejects.toThrow(kind);
    await expect(waiting).rejects.toThrow(message);
  });

  test('connecting to an agent that hangs ends with the deadline, or with the signal', async () => {
    const port = await servers.listen();
    guest.signal('SIGSTOP');

    const timed = guest.connect(port, { timeoutMs: 50 });
    const aborted = guest.connect(port, { signal: AbortSignal.timeout(50) });

    await expect(timed).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT' });
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
    guest.signal('SIGCONT');
    await idle();
  });

  test('an aborted signal sends nothing', async () => {
    const sends = guest.sends.length;

    const connecting = guest.connect(80, { signal: AbortSignal.abort('no') });
    const waiting = guest.waitForPort(80, { signal: AbortSignal.abort('no') });

    await expect(connecting).rejects.toMatchObject({ name: 'AbortError', cause: 'no' });
    await expect(waiting).rejects.toMatchObject({ name: 'AbortError', cause: 'no' });
    expect(guest.sends.length).toBe(sends);
  });
});

describe('waiting for a port', () => {
  test('resolves when something listens, which sees no connection', async () => {
    const port = await servers.freePort();
    const waiting = guest.waitForPort(port, { intervalMs: 10 });
    let connections = 0;
    const server = createServer(() => connections++);
    servers.add(server);
    await delay(50);

    server.listen(port, '127.0.0.1');

    await waiting;
    await guest.waitForPort(port);
    expect(connections).toBe(0);
  });

  test('ends with its deadline, or its signal', async () => {
    const port = await servers.freePort();

    const timed = guest.waitForPort(port, { timeoutMs: 50 });
    const aborted = guest.waitForPort(port, { signal: AbortSignal.timeout(50) });

    await expect(timed).rejects.toMatchObject({ code: 'ERR_VM_TIMEOUT' });
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
    await idle();
  });
});

test('when the VM ends, connections and waits end with its error', async () => {
  const { client, server } = await pair();
  const failed = once(client, 'error');
  const waiting = guest.waitForPort(await servers.freePort()).catch((error: Error) => error);
  server.on('data', () => {});
  const reason = new Error('the VM is gone');

  guest.agent.fail(() => reason);

  expect(await failed).toEqual([reason]);
  expect(await waiting).toBe(reason);
  await expect(guest.connect(80)).rejects.toBe(reason);
});

test('connections do not go on in a fork, whatever the agent still says of them', async () => {
  const { client, server } = await pair();
  const failed = once(client, 'error');
  const ended = once(server, 'end');
  server.write('more');
  const reason = new Error('belongs to the parent');

  await guest.takeOver(reason);

  expect(await failed).toEqual([reason]);
  expect((await guest.exec('echo fork')).stdout).toBe('fork\n');
  server.resume();
  await ended;
});

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
