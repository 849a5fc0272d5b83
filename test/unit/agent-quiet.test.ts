import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { encodeWindow, Stream } from '../../lib/internal/protocol/protocol.js';
import { buildHostAgent, HostAgent, WIDE_OPEN } from '../helpers/host-agent.js';

// A command without a reader, as in a fork before somebody attaches to it.

let agent: HostAgent;

beforeAll(() => {
  agent = new HostAgent(buildHostAgent());
}, 60_000);

afterAll(async () => {
  expect(await agent.close()).toEqual({ code: 0, signal: null, stderr: '' });
});

function wakeUps(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^voluntary_ctxt_switches:\s*(\d+)$/m.exec(status)?.[1]);
}

const COUNT_TO_100 =
  'i=0; while [ $i -lt 100 ]; do echo $i; sleep 0.005; i=$((i+1)); done; echo done >&2; read line';
const NUMBERS = Array.from({ length: 100 }, (_, i) => `${i}\n`).join('');

describe('a command whose window is shut', () => {
  test('does not wake the agent with each write', async () => {
    const command = agent.spawn(['/bin/sh', '-c', COUNT_TO_100], { stdin: true, outputLimit: 0 });
    await command.until(({ messages }) => messages.some(({ type }) => type === 'started'));
    const before = wakeUps(agent.pid);

    await command.until(() => command.received(Stream.error).length > 0);

    expect(wakeUps(agent.pid) - before).toBeLessThan(20);
    agent.send(encodeWindow(command.id, Stream.output, WIDE_OPEN));
    await agent.feed(command, Buffer.from('\n'));
    expect((await command.done).stdout.toString()).toBe(NUMBERS);
  });

  test('streams again when the window opens', async () => {
    const command = agent.spawn(['/bin/sh', '-c', `${COUNT_TO_100}; echo $line; read line`], {
      stdin: true,
      outputLimit: 0,
    });
    await command.until(() => command.received(Stream.error).length > 0);
    agent.send(encodeWindow(command.id, Stream.output, WIDE_OPEN));
    await command.until(() => command.received(Stream.output).length === NUMBERS.length);

    await agent.feed(command, Buffer.from('more\nend\n'));

    expect((await command.done).stdout.toString()).toBe(`${NUMBERS}more\n`);
  });

  test('leaves a daemon that may write on without harm', async () => {
    const script =
      '(i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789;' +
      ' i=$((i+1)); done; echo $i >"$0") & echo a; sleep 0.05; echo b';
    const mark = `/tmp/forklet-quiet-${process.pid}`;
    const command = agent.spawn(['/bin/sh', '-c', script, mark], { outputLimit: 0 });
    await delay(200);
    agent.send(encodeWindow(command.id, Stream.output, WIDE_OPEN));

    expect((await command.done).exitCode).toBe(0);
    // More than a pipe holds has been written by then.
    const { stdout } = await agent.sh(
      `while ! [ -s ${mark} ]; do sleep 0.01; done; cat ${mark}; rm ${mark}`,
    );
    expect(stdout.toString()).toBe('3000\n');
  });
});
