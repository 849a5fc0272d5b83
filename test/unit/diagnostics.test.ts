import diagnostics_channel from 'node:diagnostics_channel';

import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';

import type { DiagnosticsMessage } from '../../lib/index.js';
import { AgentGuest } from '../helpers/agent-guest.js';

const messages: DiagnosticsMessage[] = [];
const listener = (message: unknown): void => void messages.push(message as DiagnosticsMessage);
let guest: AgentGuest;

beforeAll(async () => {
  guest = await AgentGuest.start({ env: { SECRET: 'hidden' } });
  diagnostics_channel.subscribe('forklet:exec', listener);
  diagnostics_channel.subscribe('forklet:fs', listener);
});

beforeEach(() => {
  messages.length = 0;
});

afterAll(async () => {
  diagnostics_channel.unsubscribe('forklet:exec', listener);
  diagnostics_channel.unsubscribe('forklet:fs', listener);
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
