import { once } from 'node:events';
import { existsSync, fstatSync, openSync, readFileSync, statSync, watch } from 'node:fs';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { constants } from 'node:os';

import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';

import {
  encodeConnect,
  encodeFrame,
  encodePark,
  encodeRenew,
  encodeWaitPort,
  FrameType,
  ParkMode,
  RenewStage,
} from '../../lib/internal/protocol/protocol.js';
import { buildHostAgent, HostAgent } from '../helpers/host-agent.js';
import { encodeMailbox, HostMachine, isRenewed, type Mailbox } from '../helpers/host-machine.js';

const { ECANCELED, EIO, ENODEV, ENOENT, EPERM, ETIMEDOUT } = constants.errno;

const GENERATION = 0xfedc_ba98_7654_3210n;
const GENERATION_TEXT = 'fedcba9876543210\n';
const SUCCESS = {
  type: 'renewed',
  generation: GENERATION,
  errno: 0,
  stage: null,
  hook: null,
  exitCode: null,
  signal: null,
};
// The TSC of guest/agent/host_machine.c.
const TSC = 2_000_000_000n;

let program: string;
let machine: HostMachine;

beforeAll(() => {
  program = buildHostAgent();
}, 60_000);

beforeEach(() => {
  machine = new HostMachine(program);
});

afterEach(async () => {
  expect(await machine.close()).toEqual({ code: 0, signal: null, stderr: '' });
});

/** Parks the agent, and lets it go in a fork that the mailbox describes. */
async function fork(mailbox: Mailbox = {}): Promise<void> {
  const parks = machine.log.filter((line) => line === 'park').length;
  await machine.agent.start((id) => encodePark(id, ParkMode.stand)).done;
  await machine.parked(parks + 1);
  machine.letGo({ generation: GENERATION, ...mailbox });
}

async function ping(): Promise<void> {
  await machine.agent.start((id) => encodeFrame({ type: FrameType.ping, id })).done;
}

/** What the hooks of a test have noted. */
function notes(): string[] {
  return existsSync(machine.path('notes')) ? machine.read('notes').split('\n').slice(0, -1) : [];
}

describe('a fork', () => {
  test('is made unique in the order that the host relies on', async () => {
    const entropy = Buffer.alloc(64, 0xbb).fill(0xaa, 0, 1);
    await fork({ entropy, realtimeNs: 5n, hostname: 'a-fork' });

    expect(await machine.renewed()).toEqual(SUCCESS);

    expect(machine.log).toEqual([
      'first',
      'park',
      'seed aa..bb',
      'reseeded fedcba9876543210',
      'last',
      'clock 5',
      'hostname a-fork',
    ]);
  });

  test('leaves no entropy in the mailbox, which any program may read', async () => {
    await fork({ entropy: Buffer.alloc(64, 0xaa), realtimeNs: 5n });
    await machine.renewed();

    const mailbox = readFileSync(machine.path('mailbox'));

    expect(mailbox).toEqual(encodeMailbox({ generation: GENERATION, realtimeNs: 5n }));
  });

  test("ends connections, whose other ends are the parent's, and waits for ports", async () => {
    const server = createServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const connection = machine.agent.start((id) => encodeConnect(id, port, 0));
    const [socket] = (await once(server, 'connection')) as [Socket];
    const waiting = machine.agent.start((id) => encodeWaitPort(id, 1, 10_000));
    const reset = once(socket, 'error');
    const order: string[] = [];
    void connection.done.then(() => order.push('ended'));
    await fork();
    const renewed = machine.renewed().then((message) => {
      order.push('renewed');
      return message;
    });

    expect((await connection.done).errno).toBe(ECANCELED);
    expect(await renewed).toEqual(SUCCESS);
    expect(order).toEqual(['ended', 'renewed']);
    expect((await waiting.done).errno).toBe(ECANCELED);
    expect(await reset).toMatchObject([{ code: 'ECONNRESET' }]);
    server.close();
  });

  test('that keeps its generation is the parent, and nothing happens to it', async () => {
    await fork();
    await machine.renewed();
    const before = machine.log.length;

    await fork({ entropy: Buffer.alloc(64, 1), hostname: 'never' });

    await ping();
    expect(machine.log.slice(before)).toEqual(['first', 'park', 'last']);
    expect(machine.agent.other.filter(isRenewed)).toEqual([]);
  });

  test('of a fork is another machine again', async () => {
    await fork();
    await machine.renewed();

    await fork({ generation: 1n });

    expect(await machine.renewed()).toEqual({ ...SUCCESS, generation: 1n });
    expect(machine.log).toContain('reseeded 1');
  });

  test.each([
    ['half a second ago', TSC - 500_000_000n, 1_000_000, 500_000_000n],
    ['with a TSC of 3 GHz', TSC - 1_000_000_001n, 3_000_000, 333_333_333n],
    ['with a TSC that is ahead', TSC + 1n, 1_000_000, 0n],
    ['with an unknown TSC', 0n, 0, 0n],
  ])('has its clock set to what the host said %s', async (_name, tsc, tscKhz, passed) => {
    const realtimeNs = 1_764_000_000_123_456_789n;
    await fork({ realtimeNs, tsc, tscKhz });
    await machine.renewed();

    expect(machine.log).toContain(`clock ${realtimeNs + passed}`);
  });

  test('keeps its name when the mailbox has none', async () => {
    await fork();
    await machine.renewed();

    expect(machine.log.join()).not.toContain('hostname');
  });
});

describe('the generation file', () => {
  test('is there from the start', async () => {
    await ping();

    expect(machine.read('run/forklet/generation')).toBe('0000000000000000\n');
  });

  test('is rewritten in place, and whoever watches it is told', async () => {
    await ping();
    const path = machine.path('run/forklet/generation');
    const events: string[] = [];
    const watcher = watch(path, (event) => events.push(event));
    const open = openSync(path, 'r');

    await fork();
    await machine.renewed();

    expect(readFileSync(open, 'utf8')).toBe(GENERATION_TEXT);
    expect(statSync(path).ino).toBe(fstatSync(open).ino);
    await expect.poll(() => events).toContain('change');
    expect(events).not.toContain('rename');
    watcher.close();
  });

  test('is made again when the image has removed it and its directory', async () => {
    await ping();
    await machine.agent.exec(['/bin/rm', '-r', machine.path('run/forklet')]);

    await fork();

    expect(await machine.renewed()).toMatchObject({ errno: 0 });
    expect(machine.read('run/forklet/generation')).toBe(GENERATION_TEXT);
  });

  test('that cannot be written is reported, after everything else was done', async () => {
    await ping();
    await machine.agent.exec(['/bin/rm', '-r', machine.path('run')]);
    machine.addHook('10-note', `echo ran >>${machine.path('notes')}`);

    await fork();

    expect(await machine.renewed()).toMatchObject({
      generation: GENERATION,
      errno: ENOENT,
      stage: RenewStage.generation,
    });
    expect(notes()).toEqual(['ran']);
  });
});

describe('the machine id', () => {
  const id = Buffer.from('000102030405060708090a0b0c0d0eff', 'hex');

  test('is rewritten where the image has one', async () => {
    machine.write('etc/machine-id', `${'f'.repeat(32)}\n and more\n`);
    const { ino } = statSync(machine.path('etc/machine-id'));
    await fork({ id });
    await machine.renewed();

    expect(machine.read('etc/machine-id')).toBe('000102030405060708090a0b0c0d0eff\n');
    expect(statSync(machine.path('etc/machine-id')).ino).toBe(ino);
  });

  test('is not made where the image has none', async () => {
    machine.write('etc/passwd', '');
    await fork({ id });

    expect(await machine.renewed()).toEqual(SUCCESS);
    expect(existsSync(machine.path('etc/machine-id'))).toBe(false);
  });

  test('is kept when the mailbox has none', async () => {
    machine.write('etc/machine-id', 'kept');
    await fork();
    await machine.renewed();

    expect(machine.read('etc/machine-id')).toBe('kept');
  });
});

describe('a failure', () => {
  test('to seed the random pool ends the renewal, and nothing else runs', async () => {
    machine.write('fail-seed', `${EPERM}`);
    machine.addHook('10-note', `echo ran >>${machine.path('notes')}`);
    await fork({ hostname: 'never' });

    expect(await machine.renewed()).toMatchObject({
      generation: GENERATION,
      errno: EPERM,
      stage: RenewStage.entropy,
    });
    await ping();
    expect(machine.log).toEqual(['first', 'park', 'seed 00..00', 'last']);
    expect(machine.read('run/forklet/generation')).toBe('0000000000000000\n');
    expect(notes()).toEqual([]);
  });

  test('to seed the random pool can be made good by asking again', async () => {
    machine.write('fail-seed', `${EPERM}`);
    await fork();
    await machine.renewed();
    machine.write('fail-seed', '0');

    machine.agent.send(encodeRenew());

    expect(await machine.renewed()).toEqual(SUCCESS);
    expect(machine.log).toContain('reseeded fedcba9876543210');
  });

  test('to set the clock is reported, and the rest is done', async () => {
    machine.write('fail-clock', `${EPERM}`);
    machine.addHook('10-fails', 'exit 1');
    await fork({ hostname: 'a-fork' });

    expect(await machine.renewed()).toMatchObject({ errno: EPERM, stage: RenewStage.clock });
    expect(machine.log).toContain('hostname a-fork');
    expect(machine.read('run/forklet/generation')).toBe(GENERATION_TEXT);
  });
});

describe('a request to renew', () => {
  test('renews a machine whose program had parked', async () => {
    machine.write('mailbox', encodeMailbox({ generation: GENERATION, realtimeNs: 9n }));

    machine.agent.send(encodeRenew());

    expect(await machine.renewed()).toEqual(SUCCESS);
    expect(machine.log).toEqual(['seed 00..00', 'reseeded fedcba9876543210', 'last', 'clock 9']);
  });

  test('is answered at once where nothing is to be done', async () => {
    machine.agent.send(encodeRenew());
    expect(await machine.renewed()).toEqual({ ...SUCCESS, generation: 0n });
    await fork();
    await machine.renewed();
    const before = machine.log;

    machine.agent.send(encodeRenew());

    expect(await machine.renewed()).toEqual(SUCCESS);
    expect(machine.log).toEqual(before);
  });

  test('is answered with an error where there is no doorbell', async () => {
    const agent = new HostAgent(program);

    agent.send(encodeRenew());

    expect(await agent.next(isRenewed)).toMatchObject({
      generation: 0n,
      errno: ENODEV,
      stage: RenewStage.entropy,
    });
    await agent.close();
  });
});

describe('hooks', () => {
  const note = (text: string) => `echo ${text} >>${machine.path('notes')}`;

  test('run one after the other, in order of their names, and know the generation', async () => {
    machine.addHook('20-b', `${note('"b $FORKLET_GENERATION"')}`);
    machine.addHook('10-a', `${note('begin')}; sleep 0.1; ${note('end')}`);
    machine.addHook('3-c', note('"$0 in $PWD"'));
    machine.addHook('B', note('upper'));

    await fork();

    expect(await machine.renewed()).toEqual(SUCCESS);
    expect(notes()).toEqual([
      'begin',
      'end',
      'b fedcba9876543210',
      `${machine.path('etc/forklet/fork.d/3-c')} in /`,
      'upper',
    ]);
  });

  test('are executable files with a name that shows', async () => {
    machine.addHook('10-off', note('off'), 0o644);
    machine.addHook('.hidden', note('hidden'));
    machine.write('etc/forklet/fork.d/directory/file', '');
    machine.addHook('20-on', note('on'));

    await fork();

    expect(await machine.renewed()).toEqual(SUCCESS);
    expect(notes()).toEqual(['on']);
  });

  test('do not keep the agent from its other work', async () => {
    machine.addHook('10-wait', `while ! [ -e ${machine.path('go')} ]; do sleep 0.01; done`);
    await fork();

    const { stdout } = await machine.agent.sh('echo meanwhile');

    expect(stdout.toString()).toBe('meanwhile\n');
    expect(machine.agent.other.filter(isRenewed)).toEqual([]);
    machine.write('go', '');
    expect(await machine.renewed()).toEqual(SUCCESS);
  });

  test('that fail are reported, the first of them, and the others run', async () => {
    machine.addHook('10-fine', note('fine'));
    machine.addHook('20-fails', 'exit 3');
    machine.addHook('30-fails', 'exit 4');
    machine.addHook('40-fine', note('fine again'));

    await fork();

    expect(await machine.renewed()).toEqual({
      ...SUCCESS,
      errno: EIO,
      stage: RenewStage.hook,
      hook: '20-fails',
      exitCode: 3,
    });
    expect(notes()).toEqual(['fine', 'fine again']);
  });

  test('that a signal ends are reported with it', async () => {
    machine.addHook('10-dies', 'kill -TERM $$');

    await fork();

    expect(await machine.renewed()).toMatchObject({ errno: EIO, hook: '10-dies', signal: 15 });
  });

  test('that cannot be started are reported with the reason', async () => {
    machine.write('etc/forklet/fork.d/10-lost', '#!/nowhere/sh\n', 0o755);
    machine.addHook('20-fine', note('fine'));

    await fork();

    expect(await machine.renewed()).toMatchObject({
      errno: ENOENT,
      stage: RenewStage.hook,
      hook: '10-lost',
      exitCode: null,
    });
    expect(notes()).toEqual(['fine']);
  });

  test('that take more than 10 s are killed with their children', async () => {
    machine.addHook('10-hangs', `sleep 1000 & echo $! >${machine.path('child')}; wait`);
    machine.addHook('20-fine', note('fine'));
    const begin = performance.now();

    await fork();

    expect(await machine.renewed()).toMatchObject({
      errno: ETIMEDOUT,
      stage: RenewStage.hook,
      hook: '10-hangs',
    });
    expect(performance.now() - begin).toBeGreaterThan(9_900);
    expect(notes()).toEqual(['fine']);
    await expect.poll(() => existsSync(`/proc/${machine.read('child').trim()}`)).toBe(false);
  });

  test('run again for the machine that came into being while they ran', async () => {
    machine.addHook(
      '10-wait',
      `${note('$FORKLET_GENERATION')}; while ! [ -e ${machine.path('go')} ]; do sleep 0.01; done`,
    );
    await fork();
    await expect.poll(notes).toHaveLength(1);
    machine.write('mailbox', encodeMailbox({ generation: 2n }));

    machine.agent.send(encodeRenew());
    await ping();
    machine.write('go', '');

    expect(await machine.renewed()).toEqual({ ...SUCCESS, generation: 2n });
    expect(notes()).toEqual(['fedcba9876543210', '0000000000000002']);
    await ping();
    expect(machine.agent.other.filter(isRenewed)).toEqual([]);
  });
});
