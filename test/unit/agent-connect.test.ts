import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { constants } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

import { beforeAll, describe, expect, test } from 'vitest';

import {
  Cancel,
  encodeCancel,
  encodeConnect,
  encodeData,
  encodeEnd,
  encodeFrame,
  encodeRecord,
  encodeWaitPort,
  encodeWindow,
  FrameType,
  INPUT_WINDOW_BYTES,
  Stream,
  Tag,
} from '../../lib/internal/protocol/protocol.js';
import { type HostAgent, type TestOperation, WIDE_OPEN } from '../helpers/host-agent.js';
import { sharedAgent } from '../helpers/shared-agent.js';
import { tcpServers } from '../helpers/tcp-servers.js';

const { ECANCELED, ECONNREFUSED, ECONNRESET, EPIPE, EPROTO } = constants.errno;

let agent: HostAgent;
const servers = tcpServers();

sharedAgent((made) => {
  agent = made;
});

beforeAll(async () => {
  // By then the agent has all the descriptors that it keeps.
  await agent.sh('true');
});

function connect(port: number, outputLimit = WIDE_OPEN): TestOperation {
  return agent.start((id) => encodeConnect(id, port, outputLimit), INPUT_WINDOW_BYTES);
}

function isConnected({ messages }: TestOperation): boolean {
  return messages.some(({ type }) => type === 'connected');
}

function hasEnded({ messages }: TestOperation): boolean {
  return messages.some(({ type }) => type === 'end');
}

/** Connects, and resolves with both ends. */
async function pair(outputLimit?: number): Promise<{ operation: TestOperation; socket: Socket }> {
  let take: (socket: Socket) => void = () => {};
  const accepted = new Promise<Socket>((resolve) => {
    take = resolve;
  });
  const operation = connect(await servers.listen(take), outputLimit);
  await operation.until(isConnected);
  return { operation, socket: await accepted };
}

function descriptorCount(): number {
  return readdirSync(`/proc/${agent.pid}/fd`).length;
}

describe('connecting', () => {
  test('carries bytes and ends both ways', async () => {
    const before = descriptorCount();
    const { operation, socket } = await pair();
    socket.pipe(socket);

    await agent.feed(operation, Buffer.from('hello'));

    expect(await operation.done).toMatchObject({ errno: 0, stdout: Buffer.from('hello') });
    expect(operation.messages.map(({ type }) => type)).toEqual([
      'connected',
      'data',
      'end',
      'reply',
    ]);
    expect(descriptorCount()).toBe(before);
  });

  test('goes to ::1 where 127.0.0.1 refuses', async () => {
    const port = await servers.listen((socket) => socket.end('six'), '::1');

    const operation = connect(port);
    await operation.until(hasEnded);
    agent.send(encodeEnd(operation.id, 0));

    expect(await operation.done).toMatchObject({ errno: 0, stdout: Buffer.from('six') });
  });

  test('is refused where nobody listens', async () => {
    const before = descriptorCount();

    const reply = await connect(await servers.freePort()).done;

    expect(reply.errno).toBe(ECONNREFUSED);
    expect(descriptorCount()).toBe(before);
  });

  test.each([
    ['no port', []],
    ['port 0', [encodeRecord(Tag.port, Buffer.from([0, 0, 0, 0]))]],
    ['port 65536', [encodeRecord(Tag.port, Buffer.from([0, 0, 1, 0]))]],
    ['a short port', [encodeRecord(Tag.port, Buffer.from([80, 0]))]],
    ['another record', [encodeRecord(Tag.mode, Buffer.from([80, 0, 0, 0]))]],
  ])('with %s makes no sense', async (_name, payload) => {
    const connecting = agent.start((id) => encodeFrame({ type: FrameType.connect, id, payload }));
    const waiting = agent.start((id) => encodeFrame({ type: FrameType.waitPort, id, payload }));

    expect((await connecting.done).errno).toBe(EPROTO);
    expect((await waiting.done).errno).toBe(EPROTO);
  });

  test('many at once, more than descriptors were allowed at first', async () => {
    const before = descriptorCount();
    const port = await servers.listen((socket) => socket.end('x'));
    const operations = Array.from({ length: 700 }, () => connect(port));

    await Promise.all(operations.map((operation) => operation.until(hasEnded)));
    for (const { id } of operations) agent.send(encodeEnd(id, 0));
    const replies = await Promise.all(operations.map(({ done }) => done));

    expect(new Set(replies.map(({ errno }) => errno))).toEqual(new Set([0]));
    expect(descriptorCount()).toBe(before);
  });
});

describe('a server that accepts nobody', () => {
  const SCRIPT = `
    use IO::Socket::INET;
    $| = 1;
    my $server = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die;
    print $server->sockport, "\n";
    <STDIN>;
    while (my $socket = $server->accept) { print $socket 'welcome'; close $socket; }
  `;

  /** Resolves with its port, and what makes it accept after all. */
  async function idleServer(): Promise<{ port: number; accept: () => void; stop: () => void }> {
    const child = spawn('perl', ['-e', SCRIPT], { stdio: ['pipe', 'pipe', 'inherit'] });
    const [line] = (await once(child.stdout, 'data')) as [Buffer];
    return {
      port: Number(line.toString()),
      accept: () => child.stdin.write('\n'),
      stop: () => child.kill(),
    };
  }

  /** More than its queue takes; resolves with those that wait for a connection. */
  async function waiting(port: number): Promise<TestOperation[]> {
    const operations = Array.from({ length: 4 }, () => connect(port));
    await operations[0]?.until(isConnected);
    await agent.sh('true');
    return operations.filter((operation) => !isConnected(operation));
  }

  test('is waited for, and cancelled, and sent nothing meanwhile', async () => {
    const { port, stop } = await idleServer();
    const [first, second] = (await waiting(port)) as [TestOperation, TestOperation];

    agent.send(encodeCancel(first.id), encodeData(second.id, 0, Buffer.from('too early')));

    expect((await first.done).errno).toBe(ECANCELED);
    expect((await second.done).errno).toBe(EPROTO);
    stop();
  });

  test('connects when it accepts', async () => {
    const { port, accept, stop } = await idleServer();
    const [operation] = (await waiting(port)) as [TestOperation];

    accept();

    await operation.until(hasEnded);
    agent.send(encodeEnd(operation.id, 0));
    expect((await operation.done).stdout.toString()).toBe('welcome');
    stop();
  });
});

describe('half-close', () => {
  test('the end of input is the end that the peer reads', async () => {
    const { operation, socket } = await pair();
    socket.resume();
    agent.send(encodeEnd(operation.id, 0));
    await once(socket, 'end');

    socket.end('after the end');

    expect((await operation.done).stdout.toString()).toBe('after the end');
  });

  test('the end of the peer leaves input open', async () => {
    const { operation, socket } = await pair();
    socket.end();
    await operation.until(hasEnded);

    await agent.feed(operation, Buffer.from('still here'));

    const chunks = await socket.toArray();
    expect(Buffer.concat(chunks).toString()).toBe('still here');
    expect((await operation.done).errno).toBe(0);
  });

  test('the end shows while the window is shut', async () => {
    const { operation, socket } = await pair(0);

    socket.end();

    await operation.until(hasEnded);
    agent.send(encodeEnd(operation.id, 0));
    expect((await operation.done).errno).toBe(0);
  });
});

describe('breaks', () => {
  test('a reset of the peer is ECONNRESET, behind what it sent', async () => {
    const { operation, socket } = await pair();
    await new Promise((resolve) => socket.write('last words', resolve));
    await operation.until((o) => o.received(Stream.output).length > 0);

    socket.resetAndDestroy();

    expect(await operation.done).toMatchObject({
      errno: ECONNRESET,
      stdout: Buffer.from('last words'),
    });
    expect(hasEnded(operation)).toBe(false);
  });

  test('a reset shows while the window is shut', async () => {
    const { operation, socket } = await pair(0);

    socket.resetAndDestroy();

    expect((await operation.done).errno).toBe(ECONNRESET);
    expect(hasEnded(operation)).toBe(false);
  });

  test('writing to a peer that is gone is EPIPE', async () => {
    const { operation, socket } = await pair();
    socket.destroy();
    await operation.until(hasEnded);

    // The first is answered by a reset, the second meets it.
    agent.send(encodeData(operation.id, 0, Buffer.from('a')));
    await delay(50);
    agent.send(encodeData(operation.id, 1, Buffer.from('b')));

    expect((await operation.done).errno).toBe(EPIPE);
  });

  test('cancelling closes, and the peer reads an end', async () => {
    const { operation, socket } = await pair();
    socket.resume();

    agent.send(encodeCancel(operation.id));

    await once(socket, 'end');
    expect((await operation.done).errno).toBe(ECANCELED);
  });

  test('cancelling with a reset is one for the peer', async () => {
    const { operation, socket } = await pair();
    const failed = once(socket, 'error');
    socket.resume();

    agent.send(encodeCancel(operation.id, Cancel.reset));

    expect(await failed).toMatchObject([{ code: 'ECONNRESET' }]);
    expect((await operation.done).errno).toBe(ECONNRESET);
  });

  test('input that breaks the rules resets the connection', async () => {
    const { operation, socket } = await pair();
    const failed = once(socket, 'error');
    socket.resume();

    agent.send(encodeData(operation.id, 7, Buffer.from('x')));

    expect((await operation.done).errno).toBe(EPROTO);
    expect(await failed).toMatchObject([{ code: 'ECONNRESET' }]);
  });
});

describe('windows', () => {
  test('the peer is read as far as the host has granted', async () => {
    const bytes = Buffer.alloc(1_000_000, 'window');
    const { operation, socket } = await pair(1000);
    socket.end(bytes);
    await operation.until((o) => o.received(Stream.output).length === 1000);
    await delay(50);
    expect(operation.received(Stream.output).length).toBe(1000);

    agent.send(encodeWindow(operation.id, Stream.output, 500_000));
    await operation.until((o) => o.received(Stream.output).length === 500_000);
    agent.send(encodeWindow(operation.id, Stream.output, WIDE_OPEN));
    await operation.until(hasEnded);
    agent.send(encodeEnd(operation.id, 0));

    expect((await operation.done).stdout.equals(bytes)).toBe(true);
  });

  test('a peer that does not read stops the host, and gets all of it later', async () => {
    const bytes = Buffer.alloc(20_000_000, 'backpressure');
    const { operation, socket } = await pair();
    let sent = 0;
    while (operation.inputLimit > sent) {
      const end = Math.min(sent + 65_536, operation.inputLimit, bytes.length);
      agent.send(encodeData(operation.id, sent, bytes.subarray(sent, end)));
      sent = end;
      await delay(5);
    }
    expect(sent).toBeLessThan(bytes.length);

    operation.inputSent = sent;
    const [, chunks] = await Promise.all([agent.feed(operation, bytes), socket.toArray()]);
    socket.end();

    expect(Buffer.concat(chunks).equals(bytes)).toBe(true);
    expect((await operation.done).errno).toBe(0);
  });
});

describe('waiting for a port', () => {
  function wait(port: number, intervalMs = 20): TestOperation {
    return agent.start((id) => encodeWaitPort(id, port, intervalMs));
  }

  test.each(['127.0.0.1', '0.0.0.0', '::1', '::', '::ffff:127.0.0.1'])(
    'sees a listener at %s, which sees nothing',
    async (host) => {
      let connections = 0;
      const port = await servers.listen(() => connections++, host);

      expect((await wait(port).done).errno).toBe(0);
      expect(connections).toBe(0);
    },
  );

  test('does not take a listener elsewhere, or a client, for one', async () => {
    const elsewhere = await servers.listen(() => {}, '127.0.0.2');
    const { socket } = await pair();
    const client = socket.remotePort as number;
    const waits = [wait(elsewhere, 1), wait(client, 1)];
    await delay(100);

    for (const { id } of waits) agent.send(encodeCancel(id));

    for (const { done } of waits) expect((await done).errno).toBe(ECANCELED);
    socket.resetAndDestroy();
  });

  test('ends when something begins to listen, for everybody who waits', async () => {
    const port = await servers.freePort();
    const waits = [wait(port, 5), wait(port, 30), wait(port)];
    await delay(30);
    expect(waits.some(({ messages }) => messages.length > 0)).toBe(false);

    const server = createServer().listen(port, '127.0.0.1');
    servers.add(server);

    for (const { done } of waits) expect((await done).errno).toBe(0);
  });

  test('costs nothing when nobody waits any more', async () => {
    const before = descriptorCount();
    const operation = wait(await servers.freePort(), 1);
    await delay(20);

    agent.send(encodeCancel(operation.id));

    expect((await operation.done).errno).toBe(ECANCELED);
    expect(descriptorCount()).toBe(before);
  });

  test('an interval of 0 makes no sense', async () => {
    expect((await wait(80, 0).done).errno).toBe(EPROTO);
  });
});
