import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { startFailure } from '../../lib/internal/exec/failure.js';
import { checkExec } from '../../lib/internal/exec/options.js';
import { ExecStage, type ReplyMessage } from '../../lib/internal/protocol/protocol.js';
import { AgentGuest } from '../helpers/agent-guest.js';

let guest: AgentGuest;

beforeAll(async () => {
  guest = await AgentGuest.start({ env: { HOME: '/home/vm', USER: 'vm', GREETING: 'hello' } });
});

afterAll(async () => {
  await guest.stop();
});

const SHOW = 'echo $HOME,$USER,$LOGNAME,$GREETING';

describe.runIf(process.getuid?.() === 0)('the environment of a user', () => {
  test('has the variables of its entry, not those of the VM', async () => {
    const { stdout } = await guest.exec(SHOW, { user: 'root' });

    expect(stdout).toBe('/root,root,root,hello\n');
  });

  test('has those that the call names', async () => {
    const env = { HOME: '/mine', USER: undefined };

    const { stdout } = await guest.exec(SHOW, { user: 'root', env });

    expect(stdout).toBe('/mine,,root,hello\n');
  });

  test('is that of the VM without a user', async () => {
    const { stdout } = await guest.exec(SHOW);

    expect(stdout).toBe('/home/vm,vm,,hello\n');
  });
});

describe('a start that fails', () => {
  test.each([
    ['user', { user: 'x y' }, "no user 'x y' in the guest", 'getpwnam'],
    ['group', { group: 'x' }, "no group 'x' in the guest", 'getgrnam'],
    ['groups', { groups: [0, 'x'] }, "no group 'x' in the guest", 'getgrnam'],
  ])('for want of a name says which: %s', async (_option, options, message, syscall) => {
    const error = await guest.exec('true', options).catch((reason: unknown) => reason);

    expect(error).toMatchObject({
      code: 'ERR_VM_EXEC',
      message: `Cannot start the command: ${message}`,
      errno: -2,
      syscall,
    });
  });

  test('for want of cgroup2 says so', () => {
    const exec = checkExec('true', { killTree: true }, {});
    const reply = { errno: 95, stage: ExecStage.tree } as ReplyMessage;

    expect(startFailure(exec, reply).problem).toContain('killTree needs cgroup2');
  });

  test('for a limit says so', async () => {
    const limits = { nofile: 2 ** 40 };

    await expect(guest.exec('true', { limits })).rejects.toMatchObject({
      code: 'ERR_VM_EXEC',
      syscall: 'setrlimit',
      errno: -1,
    });
  });
});

describe('limits', () => {
  test('are one number for both, two, or none', async () => {
    const script = 'ulimit -Sn; ulimit -Hn; ulimit -St; ulimit -Ht; ulimit -Ss';

    const { stdout } = await guest.exec(script, {
      limits: { nofile: 64, cpu: { soft: 100, hard: 200 }, stack: 'unlimited' },
    });

    expect(stdout).toBe('64\n64\n100\n200\nunlimited\n');
  });
});

describe('arguments', () => {
  const run = (options: object) => () => guest.exec('true', options as never);

  test.each([
    ['a user of a wrong type', run({ user: {} }), TypeError, 'user'],
    ['an empty user', run({ user: '' }), TypeError, 'user'],
    ['a user with a colon', run({ user: 'a:b' }), TypeError, 'a:b'],
    ['a negative user', run({ user: -1 }), RangeError, '4294967294'],
    ['the user that means none', run({ user: 2 ** 32 - 1 }), RangeError, '4294967295'],
    ['a fraction of a group', run({ group: 1.5 }), RangeError, 'group'],
    ['groups of a wrong type', run({ groups: 'users' }), TypeError, 'groups'],
    ['a group of a wrong type', run({ groups: ['a', null] }), TypeError, 'groups[1]'],
    ['too many groups', run({ groups: Array(1025).fill(0) }), RangeError, '1025'],
    ['killTree of a wrong type', run({ killTree: 1 }), TypeError, 'killTree'],
    ['a umask with other bits', run({ umask: 0o1000 }), RangeError, 'umask'],
    ['limits of a wrong type', run({ limits: [1] }), TypeError, 'limits'],
    ['a misspelled limit', run({ limits: { nofiles: 1 } }), TypeError, '"nofile"'],
    ['a limit of a wrong type', run({ limits: { cpu: '1' } }), TypeError, 'limits.cpu'],
    ['a negative limit', run({ limits: { cpu: -1 } }), RangeError, 'limits.cpu'],
    ['a limit without its half', run({ limits: { cpu: { soft: 1 } } }), TypeError, 'cpu.hard'],
    ['soft above hard', run({ limits: { cpu: { soft: 2, hard: 1 } } }), RangeError, 'limits.cpu'],
    ['half a limit too much', run({ limits: { cpu: { max: 2 } } }), TypeError, 'max'],
  ])('refuses %s and names it', (_, call, type, name) => {
    expect(call).toThrow(type);
    expect(call).toThrow(name);
  });
});
