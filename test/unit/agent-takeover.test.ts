import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import { ParkMode } from '../../lib/internal/protocol/protocol.js';
import { AgentGuest } from '../helpers/agent-guest.js';

// The real agent, and a second connection that goes on where the first one was: what a fork does,
// but for the copy of the machine.

let guest: AgentGuest;
const reason = new Error('belongs to the parent');

beforeEach(async () => {
  guest = await AgentGuest.start();
});

afterEach(async () => {
  await guest.stop();
});

describe('while an agent is being frozen', () => {
  test('nothing is sent behind the frame that asks it to park, until the gate opens', async () => {
    const early = guest.exec('echo early');
    await guest.agent.park(ParkMode.flush, () => false).reply;
    const sends = guest.sends.length;
    const late = guest.exec('echo late');
    const reading = guest.fs.readdir('/');
    const result = late.then(({ stdout }) => stdout);
    await delay(50);
    expect(guest.sends).toHaveLength(sends);

    guest.agent.gate.open('freeze');
    expect(await result).toBe('late\n');
    expect(await reading).toContain('etc');
    expect((await early).stdout).toBe('early\n');
  });

  test('one who lost interest before the frame left holds nothing back', async () => {
    await guest.agent.park(ParkMode.flush, () => true).reply;

    expect(guest.agent.gate.closed).toBe(false);
    expect((await guest.exec('echo on')).stdout).toBe('on\n');
  });

  test('no agent counts as silent', async () => {
    await guest.stop();
    guest = await AgentGuest.start({ pingIntervalMs: 10 });
    await guest.agent.park(ParkMode.flush, () => false).reply;
    const command = guest.exec('echo on');
    await delay(150);
    guest.agent.gate.open('freeze');

    expect((await command).stdout).toBe('on\n');
  });
});

describe('a connection that takes over', () => {
  test('goes on with a command’s output and input, byte by byte', async () => {
    const handle = guest.exec('i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; cat');
    handle.catch(() => {});
    const { stdin } = handle;
    const before: Buffer[] = [];
    handle.stdout.on('data', (chunk: Buffer) => before.push(chunk));
    // Asked for now: on a busy host all of it may come at once.
    const some = once(handle.stdout, 'data');
    const { id, pid } = await handle.started;
    await some;
    await guest.takeOver(reason);
    stdin.destroy();
    const attached = guest.attach(id);
    attached.stdin.end('the end\n');
    const after = await text(attached.stdout);

    expect(await attached.started).toEqual({ id, pid });
    const lines = Array.from({ length: 3000 }, (_, i) => `${i}\n`).join('');
    expect(Buffer.concat(before).toString() + after).toBe(`${lines}the end\n`);
    expect(await attached).toMatchObject({ exitCode: 0 });
    await expect(handle).rejects.toThrow('belongs to the parent');
  });

  test('knows what runs, and what has ended', async () => {
    const ended = guest.exec('exit 3');
    await ended;
    const running = guest.exec(['sleep', '1000'], { stdin: 'ignore', stdout: 'ignore' });
    running.catch(() => {});
    const { id, pid } = await running.started;
    await guest.takeOver(reason);

    expect(guest.agent.commands).toMatchObject([
      {
        id,
        pid,
        command: ['sleep', '1000'],
        stdin: false,
        stdout: false,
        stderr: true,
        pty: false,
      },
    ]);
    const attached = guest.attach(id);
    expect(() => attached.stdin).toThrow(TypeError);
    attached.kill('SIGTERM');
    expect(await attached.exited).toEqual({ exitCode: null, signal: 'SIGTERM' });
    expect(guest.agent.commands).toEqual([]);
  });

  test('cancels a file that is being read, and reuses no number that is in use', async () => {
    await guest.exec(['mkfifo', guest.path('fifo')], { check: true });
    const writer = guest.exec(`exec 3<>${guest.path('fifo')}; echo ready; read x`);
    writer.stdin.on('error', () => {});
    writer.catch(() => {});
    await once(writer.stdout, 'data');
    const reading = guest.fs.readFile(guest.path('fifo'));
    reading.catch(() => {});
    await delay(10);
    await guest.takeOver(reason);

    await expect(reading).rejects.toThrow('belongs to the parent');
    const results = await Promise.all(
      Array.from({ length: 20 }, (_, i) => guest.exec(`echo ${i}`)),
    );
    expect(results.map(({ stdout }) => stdout.trim())).toEqual(
      Array.from({ length: 20 }, (_, i) => String(i)),
    );
    expect(guest.agent.commands).toHaveLength(1);
  });

  test('can be taken over in turn, with what nobody attached to', async () => {
    const handle = guest.exec('echo first; read x; echo $x');
    handle.catch(() => {});
    handle.stdin.write('');
    handle.stdout.resume();
    const { id } = await handle.started;
    await guest.takeOver(reason);
    await guest.takeOver(reason);
    const attached = guest.attach(id);
    attached.stdin.end('second\n');

    expect((await attached).stdout.endsWith('second\n')).toBe(true);
    expect(guest.hold.held).toBe(0);
  });
});
