import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';

import { describe, expect, test } from 'vitest';

import {
  ExecStage,
  encodeCancel,
  encodeFrame,
  encodeRecord,
  FrameType,
  Stream,
  Tag,
} from '../../lib/internal/protocol/protocol.js';
import { buildHostAgent, HostAgent } from '../helpers/host-agent.js';
import { sharedAgentWithDirectories } from '../helpers/shared-agent.js';

const { EACCES, ENOENT, EPROTO, EINVAL, EFBIG } = constants.errno;

let agent: HostAgent;
let directory: string;

sharedAgentWithDirectories((...made) => {
  [agent, directory] = made;
});

/** Of this machine, whose users are the agent's. */
const NOBODY = readFileSync('/etc/passwd', 'utf8')
  .split('\n')
  .map((line) => line.split(':'))
  .find(([name]) => name === 'nobody') as string[];

const ID = 'id -u; id -g; id -G';

// Changing users takes root, which the agent is in a guest.
describe.runIf(process.getuid?.() === 0)('a user', () => {
  test('by name has its number, group and groups', async () => {
    const { stdout } = await agent.sh(ID, { user: 'nobody' });

    const [, , uid, gid] = NOBODY;
    expect(stdout.toString()).toBe(`${uid}\n${gid}\n${gid}\n`);
  });

  test('by number is looked up as well', async () => {
    const { stdout } = await agent.sh(ID, { user: Number(NOBODY[2]) });

    expect(stdout.toString()).toBe(`${NOBODY[2]}\n${NOBODY[3]}\n${NOBODY[3]}\n`);
  });

  test('whose number is not there has the group of the same number', async () => {
    const { stdout } = await agent.sh(`${ID}; echo $HOME,$USER`, {
      user: 54_321,
      login: ['home', 'user', 'logname'],
    });

    expect(stdout.toString()).toBe('54321\n54321\n54321\n/,\n');
  });

  test('whose name is not there fails the start', async () => {
    const result = await agent.sh('true', { user: 'nobod' });

    expect(result).toMatchObject({ errno: ENOENT, stage: ExecStage.user, pid: null });
  });

  test('is all of it: real, effective, saved, and without a capability', async () => {
    const { stdout } = await agent.sh('grep -E "Uid|Gid|CapEff" /proc/self/status', {
      user: 1234,
    });

    expect(stdout.toString()).toBe(
      'Uid:\t1234\t1234\t1234\t1234\nGid:\t1234\t1234\t1234\t1234\nCapEff:\t0000000000000000\n',
    );
  });

  test('has the variables that were asked for', async () => {
    const { stdout } = await agent.exec(['env'], {
      env: ['PATH=/usr/bin:/bin', 'HOME=/given'],
      user: 'nobody',
      login: ['user', 'logname'],
    });

    expect(stdout.toString()).toBe(
      'PATH=/usr/bin:/bin\nHOME=/given\nUSER=nobody\nLOGNAME=nobody\n',
    );
  });

  test('enters its directory with its own permissions', async () => {
    const closed = join(directory, 'closed');
    mkdirSync(closed, { mode: 0o700 });

    expect(await agent.sh('true', { user: 'nobody', cwd: closed })).toMatchObject({
      errno: EACCES,
      stage: ExecStage.cwd,
    });
    expect(await agent.sh('true', { cwd: closed })).toMatchObject({ errno: 0 });
  });

  test('looks its program up with its own permissions', async () => {
    const program = join(directory, 'program');
    writeFileSync(program, '#!/bin/sh\n', { mode: 0o700 });
    chmodSync(directory, 0o755);

    expect(await agent.exec([program], { user: 'nobody' })).toMatchObject({
      errno: EACCES,
      stage: ExecStage.execute,
    });
  });

  test('leaves the agent as it is', async () => {
    await agent.sh('true', { user: 'nobody', umask: 0o077 });

    const { stdout } = await agent.sh('id -u; umask; grep Uid /proc/$PPID/status');
    expect(stdout.toString()).toBe('0\n0022\nUid:\t0\t0\t0\t0\n');
  });
});

// A child that has changed its user and not reached its program yet has the agent wait: whoever may
// stop it would stop the agent.
test.runIf(process.getuid?.() === 0)(
  'a user who stops its children does not stop the agent',
  async () => {
    const attack =
      'seen=$$; echo ready; while :; do read children < /proc/$0/task/$0/children; ' +
      'for pid in $children; do case " $seen " in *" $pid "*) ;; ' +
      '*) kill -STOP $pid && seen="$seen $pid";; esac; done; done 2>/dev/null';
    const attacker = agent.spawn(['sh', '-c', attack, String(agent.pid)], { user: 31_337 });
    await attacker.until((o) => o.received(Stream.output).includes('\n'));

    // Looking for the program takes a while, as the user.
    const env = [`PATH=${'/missing:'.repeat(10_000)}/usr/bin:/bin`];
    const operations = [1, 2, 3].map(() => agent.spawn(['true'], { user: 31_337, env }));
    for (const { done } of operations) expect(await done).toMatchObject({ errno: 0, exitCode: 0 });

    agent.send(encodeCancel(attacker.id));
    await attacker.done;
  },
);

describe.runIf(process.getuid?.() === 0)('groups', () => {
  test('are those that are given, by name and number', async () => {
    const { stdout } = await agent.sh(ID, {
      user: 1234,
      group: 'daemon',
      groups: ['root', 77],
    });

    expect(stdout.toString()).toBe('1234\n1\n1 0 77\n');
  });

  test('are none when none are given', async () => {
    const { stdout } = await agent.sh('grep Groups /proc/self/status', { groups: [] });

    expect(stdout.toString().trim()).toBe('Groups:');
  });

  test.each([
    ['group', { group: 'missing' }, ExecStage.group],
    ['groups', { groups: ['root', 'missing'] }, ExecStage.groups],
  ])('whose name is not there fail the start, in %s', async (_where, options, stage) => {
    expect(await agent.sh('true', options)).toMatchObject({ errno: ENOENT, stage });
  });
});

// An agent whose /etc is the test's own: what is there is the guest's, and may be anything. It is
// confined without the rights to change users, so that each start that finds one fails with EPERM
// behind the look-up.
describe.runIf(process.getuid?.() === 0)('the files of a guest', () => {
  async function lookUp(files: Record<string, string>, options: object) {
    for (const name of ['etc', 'bin']) mkdirSync(join(directory, name));
    for (const [name, text] of Object.entries(files)) {
      writeFileSync(join(directory, 'etc', name), text);
    }
    const confined = new HostAgent(buildHostAgent(), [directory]);
    try {
      return await confined.exec(['/bin/none'], options);
    } finally {
      await confined.close();
    }
  }
  const EPERM = 1;
  const ENTRY = 'app:x:1000:1000::/home/app:/bin/sh';

  test.each([
    ['a proper one', `${ENTRY}\n`, EPERM],
    ['a proper one without its last line break', ENTRY, EPERM],
    ['a line that is too short before it', `app:x:1\n\n:::\n${ENTRY}\n`, EPERM],
    ['no file', undefined, ENOENT],
    ['nothing', '', ENOENT],
    ['a name that only begins like it', `apps:x:1000:1000::/:/bin/sh\n`, ENOENT],
    ['a number that is none', 'app:x:-1:1000::/:/bin/sh\n', ENOENT],
    ['a number that is too large', 'app:x:4294967295:0::/:/bin/sh\n', ENOENT],
    ['a number that wraps', 'app:x:18446744073709551616:0::/:/bin/sh\n', ENOENT],
    ['a home that is no path', `app:x:1:1::${'h'.repeat(5000)}:/bin/sh\n`, ENOENT],
    ['a megabyte of one line', 'x'.repeat(2 ** 20), ENOENT],
    ['more than a megabyte', 'x'.repeat(2 ** 20 + 1), EFBIG],
  ])('%s', async (_what, passwd, errno) => {
    const files = passwd === undefined ? {} : { passwd };

    expect(await lookUp(files, { user: 'app' })).toMatchObject({ errno });
  });

  test('a directory in the place of a file', async () => {
    mkdirSync(join(directory, 'etc', 'passwd'), { recursive: true });
    const confined = new HostAgent(buildHostAgent(), [directory]);
    const result = await confined.exec(['/bin/none'], { user: 'app' });
    await confined.close();

    expect(result).toMatchObject({ errno: EINVAL, stage: ExecStage.user });
  });
});

describe('limits', () => {
  test('are soft and hard ones', async () => {
    const { stdout } = await agent.sh('ulimit -S -n; ulimit -H -n; ulimit -c', {
      limits: [
        { resource: 7, soft: 50, hard: 60 },
        { resource: 4, soft: 0, hard: 0 },
      ],
    });

    expect(stdout.toString()).toBe('50\n60\n0\n');
  });

  test('may be none', async () => {
    const { stdout } = await agent.sh('ulimit -S -s', {
      limits: [{ resource: 3, soft: Infinity, hard: Infinity }],
    });

    expect(stdout.toString()).toBe('unlimited\n');
  });

  test('that the kernel refuses fail the start', async () => {
    const result = await agent.sh('true', { limits: [{ resource: 7, soft: 2, hard: 2 ** 40 }] });

    expect(result).toMatchObject({ errno: 1, stage: ExecStage.limits });
  });

  test.runIf(process.getuid?.() === 0)('of processes count those of the user', async () => {
    const limits = [{ resource: 6, soft: 1, hard: 1 }];

    const result = await agent.sh('/bin/true; echo reached', { user: 61_234, limits });

    expect(result.stdout.toString()).toBe('');
    expect(result.stderr.toString()).toMatch(/fork/);
  });

  test('of file size end a command with SIGXFSZ', async () => {
    const script = `exec dd if=/dev/zero of=${directory}/file bs=1024 count=8`;

    const result = await agent.sh(script, { limits: [{ resource: 1, soft: 1000, hard: 1000 }] });

    expect(result.signal).toBe(25);
  });
});

describe('a umask', () => {
  test('is that of the files that are made', async () => {
    const { stdout } = await agent.sh(
      `umask; touch ${directory}/file; stat -c %a ${directory}/file`,
      { umask: 0o037 },
    );

    expect(stdout.toString()).toBe('0037\n640\n');
  });
});

describe('a request that makes no sense gets EPROTO', () => {
  const number = (...values: number[]) => Buffer.from(Uint32Array.from(values).buffer);

  test.each([
    ['a umask with other bits', encodeRecord(Tag.umask, number(0o1000))],
    ['a user number of another size', encodeRecord(Tag.userId, Buffer.alloc(8))],
    ['the user that means none', encodeRecord(Tag.userId, number(0xffff_ffff))],
    ['a name with NUL', encodeRecord(Tag.userName, Buffer.from('a\0b'))],
    ['a member without its flag', encodeRecord(Tag.memberId, number(5))],
    ['a login without a user', encodeRecord(Tag.flags, number(32))],
    ['a limit of another size', encodeRecord(Tag.limit, Buffer.alloc(23))],
    ['a limit with rubbish', encodeRecord(Tag.limit, Buffer.alloc(24, 1))],
  ])('%s', async (_what, record) => {
    const operation = agent.start((id) =>
      encodeFrame({ type: FrameType.exec, id, payload: [encodeRecord(Tag.arg, 'true'), record] }),
    );

    expect(await operation.done).toMatchObject({ errno: EPROTO, stage: null });
  });

  test('more limits than there are resources', async () => {
    const limits = Array.from({ length: 17 }, () => ({ resource: 7, soft: 9, hard: 9 }));

    expect(await agent.sh('true', { limits })).toMatchObject({ errno: EPROTO });
  });

  test('more groups than a command may have', async () => {
    expect(await agent.sh('true', { groups: Array(1025).fill(1) })).toMatchObject({
      errno: EPROTO,
    });
  });
});
