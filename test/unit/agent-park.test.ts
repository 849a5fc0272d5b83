import { constants } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';

import {
  encodeData,
  encodeEnd,
  encodeFrame,
  encodePark,
  FrameType,
  ParkMode,
  Stream,
} from '../../lib/internal/protocol/protocol.js';
import { buildHostAgent, HostAgent } from '../helpers/host-agent.js';
import { HostMachine } from '../helpers/host-machine.js';

const { EBUSY, ENODEV, EPROTO } = constants.errno;
const CLEAN = { code: 0, signal: null, stderr: '' };

let program: string;
let machine: HostMachine;

beforeAll(() => {
  program = buildHostAgent();
}, 60_000);

beforeEach(() => {
  machine = new HostMachine(program);
});

afterEach(async () => {
  expect(await machine.close()).toEqual(CLEAN);
});

function park(agent: HostAgent, mode: 0 | 1 = ParkMode.stand) {
  return agent.start((id) => encodePark(id, mode));
}

function ping(agent: HostAgent) {
  return agent.start((id) => encodeFrame({ type: FrameType.ping, id }));
}

describe('an agent that is asked to park', () => {
  test('replies, stands still, and goes on where it was', async () => {
    const { agent } = machine;
    expect(await park(agent).done).toMatchObject({ errno: 0 });
    await machine.parked();
    const later = ping(agent);
    let answered = false;
    void later.done.then(() => {
      answered = true;
    });
    await delay(100);
    expect(answered).toBe(false);

    machine.letGo();

    await later.done;
    expect(machine.log).toEqual(['first', 'park', 'last']);
  });

  test('handles no frame behind it, though both came in one piece', async () => {
    const { agent } = machine;
    const id = agent.newId();
    const parking = park(agent);
    const later = agent.start((other) =>
      Buffer.concat([
        encodePark(id, ParkMode.stand),
        encodeFrame({ type: FrameType.ping, id: other }),
      ]),
    );
    await parking.done;
    await machine.parked();
    expect(later.messages).toEqual([]);
    machine.letGo();
    await machine.parked(2);
    expect(later.messages).toEqual([]);

    machine.letGo();

    await later.done;
  });

  test('parks again at once when it is let go for that', async () => {
    await park(machine.agent).done;
    await machine.parked();
    machine.letGo({ parkAgain: true, generation: 5n });
    await machine.parked(2);
    machine.letGo({ generation: 0n });
    await ping(machine.agent).done;

    expect(machine.log).toEqual(['first', 'park', 'park', 'last']);
    expect(machine.agent.other.map(({ type }) => type)).toEqual(['hello']);
  });

  test('sends all that it has to say first, however long that takes', async () => {
    const { agent } = machine;
    const command = agent.spawn(
      ['/bin/sh', '-c', 'yes 0123456789 | head -c 2000000; echo >&2; cat'],
      {
        stdin: true,
      },
    );
    await command.until(() => command.received(Stream.output).length > 0);
    agent.socket.pause();
    // Until the socket and the agent's buffer are full.
    await delay(300);
    const parking = park(agent);
    await delay(200);
    expect(machine.log).not.toContain('park');

    agent.socket.resume();

    expect(await parking.done).toMatchObject({ errno: 0 });
    await machine.parked();
    const received = command.received(Stream.output).length;
    await delay(100);
    expect(command.received(Stream.output).length).toBe(received);
    machine.letGo();
    await agent.feed(command, Buffer.from('end'));
    const { stdout } = await command.done;
    expect(stdout.length).toBe(2_000_003);
    expect(stdout.subarray(0, 22).toString()).toBe('0123456789\n0123456789\n');
    expect(stdout.subarray(-3).toString()).toBe('end');
  });

  test('sends reports that wait for company, too', async () => {
    const command = machine.agent.spawn(['/bin/cat'], { stdin: true, lazyStart: true });
    await park(machine.agent).done;

    expect(command.messages).toMatchObject([{ type: 'started' }]);
    await machine.parked();
    machine.letGo();
    await machine.agent.feed(command, Buffer.alloc(0));
    await command.done;
  });

  test('keeps live commands, their ids and the offsets of their streams', async () => {
    const { agent } = machine;
    const command = agent.spawn(['/bin/cat'], { stdin: true });
    agent.send(encodeData(command.id, 0, Buffer.from('before ')));
    await command.until(() => command.received(Stream.output).length === 7);
    await park(agent).done;
    await machine.parked();

    machine.letGo({ generation: 7n });

    agent.send(encodeData(command.id, 7, Buffer.from('after')), encodeEnd(command.id, 12));
    expect((await command.done).stdout.toString()).toBe('before after');
    expect(await machine.renewed()).toMatchObject({ generation: 7n });
  });

  test('only replies and sends when a program parks instead', async () => {
    expect(await park(machine.agent, ParkMode.flush).done).toMatchObject({ errno: 0 });

    await ping(machine.agent).done;
    expect(machine.log).toEqual([]);
  });

  test('refuses while hooks of a renewal run', async () => {
    machine.addHook('10-wait', `while ! [ -e ${machine.path('go')} ]; do sleep 0.01; done`);
    await park(machine.agent).done;
    await machine.parked();
    machine.letGo({ generation: 7n });

    expect(await park(machine.agent).done).toMatchObject({ errno: EBUSY });

    machine.write('go', '');
    expect(await machine.renewed()).toMatchObject({ generation: 7n, errno: 0 });
    expect(await park(machine.agent, ParkMode.flush).done).toMatchObject({ errno: 0 });
  });

  test('refuses to park in a way that it does not know', async () => {
    const parking = machine.agent.start((id) =>
      encodeFrame({ type: FrameType.park, id, value: 2 }),
    );

    expect(await parking.done).toMatchObject({ errno: EPROTO });
  });

  test('ends when the host goes while it has something to say', async () => {
    const { agent } = machine;
    const command = agent.spawn(['/usr/bin/yes']);
    await command.until(() => command.received(Stream.output).length > 0);
    agent.socket.pause();
    await delay(200);
    void park(agent).done.catch(() => {});

    agent.socket.destroy();

    expect(await agent.exited).toEqual(CLEAN);
  });
});

describe('an agent without a doorbell', () => {
  test('says so and goes on', async () => {
    const agent = new HostAgent(program);

    expect(await park(agent).done).toMatchObject({ errno: ENODEV });
    expect(await park(agent, ParkMode.flush).done).toMatchObject({ errno: 0 });
    await ping(agent).done;
    expect(await agent.close()).toEqual(CLEAN);
  });
});
