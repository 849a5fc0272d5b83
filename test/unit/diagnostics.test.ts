import diagnostics_channel from 'node:diagnostics_channel';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';

import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';

import type { DiagnosticsMessage } from '../../lib/index.js';
import { AgentGuest } from '../helpers/agent-guest.js';

const CHANNELS = ['forklet:exec', 'forklet:fs', 'forklet:connect', 'forklet:forward'];
const messages: DiagnosticsMessage[] = [];
const listener = (message: unknown): void => void messages.push(message as DiagnosticsMessage);
let guest: AgentGuest;

beforeAll(async () => {
  guest = await AgentGuest.start({ env: { SECRET: 'hidden' } });
  for (const channel of CHANNELS) diagnostics_channel.subscribe(channel, listener);
});

beforeEach(() => {
  messages.length = 0;
});

afterAll(async () => {
  for (const channel of CHANNELS) diagnostics_channel.unsubscribe(channel, listener);
  await guest.stop();
});

test('a command is published with its arguments and its end, without contents', async () => {
  await guest.exec('cat >&2; exit 3', { stdin: 'private input', env: { TOKEN: 'hidden' } });

  expect(messages).toMatchObject([
    {
      vmId: 'vm-test',
      parentId: null,
      operation: 'exec',
      arguments: { command: 'cat >&2; exit 3', env: ['PATH', 'SECRET', 'TOKEN'] },
      outcome: 'ok',
      result: { exitCode: 3, signal: null },
    },
  ]);
  expect(messages[0]?.durationMs).toBeGreaterThan(0);
  expect(JSON.stringify(messages)).not.toMatch(/hidden|private/);
});

test('a failure is published with its code', async () => {
  await guest.exec(['/nope']).catch(() => {});
  await guest.fs.readFile('/nope').catch(() => {});

  expect(messages).toMatchObject([
    { operation: 'exec', outcome: 'error', errorCode: 'ERR_VM_EXEC' },
    { operation: 'readFile', arguments: { path: '/nope' }, outcome: 'error', errorCode: 'ENOENT' },
  ]);
});

test('files are published with path and size, without contents', async () => {
  await guest.fs.writeFile(guest.path('x'), 'private');
  await guest.fs.readFile(guest.path('x'));

  expect(messages).toMatchObject([
    { operation: 'writeFile', outcome: 'ok', result: { bytes: 7 } },
    { operation: 'readFile', outcome: 'ok', result: { bytes: 7 } },
  ]);
  expect(JSON.stringify(messages)).not.toContain('private');
});

test('a connection is published when it has ended, without what it carried', async () => {
  const server = createServer((socket) => socket.end('private answer')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await guest.waitForPort(port);
  const forward = await guest.forward({ guestPort: port }, new Promise(() => {}));
  const client = await guest.connect(port);
  client.resume().end('private');
  await once(client, 'close');
  await guest.connect(1).catch(() => {});
  await forward.close();
  server.close();

  expect(messages).toMatchObject([
    { operation: 'waitForPort', arguments: { port }, outcome: 'ok' },
    {
      operation: 'connect',
      arguments: { port },
      outcome: 'ok',
      result: { bytesRead: 14, bytesWritten: 7 },
    },
    { operation: 'connect', arguments: { port: 1 }, outcome: 'error', errorCode: 'ECONNREFUSED' },
    { operation: 'forward', arguments: { guestPort: port, host: '127.0.0.1' }, outcome: 'ok' },
  ]);
  expect(JSON.stringify(messages)).not.toContain('private');
});
