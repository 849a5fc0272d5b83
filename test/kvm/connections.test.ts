import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readlinkSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

import { describe, expect, test } from 'vitest';

import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';
import { buffer, text } from '../helpers/tcp-servers.js';

const PORT = 7000;
const WEB_PORT = 8080;

/** Sockets of this process. */
function socketCount(): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:');
    } catch {
      return false;
    }
  }).length;
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

describe.runIf(hasKvm)('connections', () => {
  let server: string;
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.writeFile('/tcp_server', compileGuestProgram('tcp_server'), { mode: 0o755 });
    const running = vm.exec(['/tcp_server', String(PORT)]);
    server = (await running.started).id;
    await vm.waitForPort(PORT);
    // The first connection of a kernel costs seconds where that is emulated: once for all forks.
    (await vm.connect(PORT)).destroy();
  });

  test('carry bytes, and ends both ways', async () => {
    const { vm } = shared;
    const echo = await vm.connect(PORT);
    const counted = await vm.connect(PORT);
    const ended = await vm.connect(PORT, { allowHalfOpen: true });

    echo.end('echo');
    counted.end('how many?');
    ended.write('f');
    const answers = Promise.all([echo, counted, ended].map(text));

    expect(await answers).toEqual(['echo', '9', '']);
    ended.end('the rest');
    expect((await vm.attach(server).lines().next()).value).toBe('9');
  });

  test('carry more than their windows hold, with a reader that comes late', async () => {
    const bytes = randomBytes(1_000_000).fill('e', 0, 1);
    const client = await shared.vm.connect(PORT);

    client.end(bytes);
    // What was sent comes back, and waits in the guest when nobody takes it.
    let before = -1;
    while (before !== client.writableLength) {
      before = client.writableLength;
      await delay(500);
    }
    expect(client.readableLength).toBeLessThanOrEqual(128 * 1024);

    expect(sha256(await buffer(client))).toBe(sha256(bytes));
  });

  test('are refused and reset as by node:net', async () => {
    const client = await shared.vm.connect(PORT);
    const failed = once(client, 'error');
    client.write('r');

    expect(await failed).toMatchObject([{ code: 'ECONNRESET', errno: -104, syscall: 'read' }]);
    await expect(shared.vm.connect(1)).rejects.toMatchObject({
      code: 'ECONNREFUSED',
      errno: -111,
      syscall: 'connect',
      address: '127.0.0.1',
      port: 1,
    });
  });

  test('go fifty at once', async () => {
    const clients = await Promise.all(Array.from({ length: 50 }, () => shared.vm.connect(PORT)));
    for (const [index, client] of clients.entries()) client.end(`e${index}`);

    expect(await Promise.all(clients.map(text))).toEqual(clients.map((_, index) => `e${index}`));
  });

  test('of a parent go on, and its fork has none', async () => {
    const { vm } = shared;
    const client = await vm.connect(PORT);
    client.write('e1');
    expect(String((await once(client, 'data'))[0])).toBe('e1');

    await using fork = await vm.fork();

    // The server in the fork is told that its client is gone.
    expect((await fork.attach(server).lines().next()).value).toBe('reset');
    const own = await fork.connect(PORT);
    own.end('e of the fork');
    expect(await text(own)).toBe('e of the fork');
    client.end('2');
    expect(await text(client)).toBe('2');
  });

  test('end with a reset, and wait for no paused VM', async () => {
    await using fork = await shared.snapshot.fork();
    const client = await fork.connect(PORT);
    const failed = once(client, 'error');
    const waiting = fork.waitForPort(1).catch((error: unknown) => error);
    await fork.reset();

    expect(await failed).toMatchObject([{ code: 'ERR_VM_RESET' }]);
    expect(await waiting).toMatchObject({ code: 'ERR_VM_RESET' });
    const again = await fork.connect(PORT);
    again.end('e again');
    expect(await text(again)).toBe('e again');
    await fork.pause();
    await expect(fork.connect(PORT)).rejects.toMatchObject({ code: 'ERR_VM_PAUSED' });
    await expect(fork.waitForPort(PORT)).rejects.toMatchObject({ code: 'ERR_VM_PAUSED' });
  });

  test('are not used up by waiting for their port', async () => {
    const { vm } = shared;
    const once = vm.exec('sleep 0.3; echo hello | nc -l -p 7001');

    await vm.waitForPort(7001);

    const client = await vm.connect(7001);
    expect(await text(client)).toBe('hello\n');
    expect((await once).ok).toBe(true);
    await expect(vm.waitForPort(7001, { timeoutMs: 300 })).rejects.toMatchObject({
      code: 'ERR_VM_TIMEOUT',
    });
  });

  test('reach a web server through a port of the host, also after a reset', async () => {
    const before = socketCount();
    const fork = await shared.snapshot.fork();
    await using web = await fork.forward({ guestPort: WEB_PORT });
    const page = `http://${web.host}:${web.port}/index.html`;
    const options = { headers: { connection: 'close' } };
    const serve = async (): Promise<void> => {
      await fork.exec(`mkdir /www; echo content > /www/index.html; httpd -p ${WEB_PORT} -h /www`, {
        check: true,
      });
      await fork.waitForPort(WEB_PORT);
    };
    await serve();

    expect(await (await fetch(page, options)).text()).toBe('content\n');
    await fork.reset();
    await expect(fetch(page, options)).rejects.toThrow();
    await serve();
    expect(await (await fetch(page, options)).text()).toBe('content\n');

    await fork.close();
    await expect(fetch(page, options)).rejects.toThrow();
    expect(socketCount()).toBe(before);
  });
});
