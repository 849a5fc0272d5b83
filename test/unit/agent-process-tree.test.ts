import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

import { afterAll, afterEach, describe, expect, test } from 'vitest';

import { ExecStage, encodeCancel, Stream } from '../../lib/internal/protocol/protocol.js';
import { buildHostAgent, HostAgent } from '../helpers/host-agent.js';

const { ECANCELED, EOPNOTSUPP } = constants.errno;

/** Starts a program in a mount namespace where /sys/fs/cgroup is a file system of that type. */
function under(type: string, ...program: string[]): [string, string[]] {
  const script = `mount -t ${type} none /sys/fs/cgroup && exec "$@"`;
  return ['unshare', ['--mount', '--propagation=private', 'sh', '-c', script, 'sh', ...program]];
}

function canMount(type: string): boolean {
  try {
    execFileSync(...under(type, 'true'), { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

function isAlive(pid: number): boolean {
  const state = existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'latin1') : '';
  return state !== '' && !/\) [ZX] /.test(state);
}

// A daemon: of another session, and no child of the command's any more.
const DAEMON = '(setsid sh -c "echo \\$\\$; exec sleep 60" &)';

let agent: HostAgent;

afterEach(async () => {
  await agent.close();
});

describe.runIf(canMount('cgroup2'))('a command with a cgroup of its own', () => {
  /** Cgroups of commands, as the agent sees them. */
  function cgroups(): string[] {
    const parent = `/proc/${agent.pid}/root/sys/fs/cgroup/forklet`;
    return readdirSync(parent, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name);
  }

  // The hierarchy is the machine's, whoever has it mounted.
  afterAll(() => {
    execFileSync(...under('cgroup2', 'rmdir', '/sys/fs/cgroup/forklet'));
  });

  function start(): void {
    agent = new HostAgent(...under('cgroup2', buildHostAgent()));
  }

  async function firstPid(script: string) {
    const operation = agent.spawn(['sh', '-c', script], { killTree: true });
    await operation.until((o) => o.received(Stream.output).includes('\n'));
    return { operation, pid: Number.parseInt(operation.received(Stream.output).toString(), 10) };
  }

  test('is killed with its daemons before the reply', async () => {
    start();
    const { operation, pid } = await firstPid(`${DAEMON}; sleep 60`);
    expect(isAlive(pid)).toBe(true);

    agent.send(encodeCancel(operation.id));

    expect(await operation.done).toMatchObject({ errno: ECANCELED, signal: 9 });
    expect(isAlive(pid)).toBe(false);
    expect(cgroups()).toEqual([]);
  });

  test('that ends by itself leaves its daemons, and a cgroup until they are gone', async () => {
    start();
    const { operation, pid } = await firstPid(`${DAEMON}; sleep 0.1`);

    expect(await operation.done).toMatchObject({ errno: 0, exitCode: 0 });
    expect(isAlive(pid)).toBe(true);
    expect(cgroups()).toHaveLength(1);
    process.kill(pid, 'SIGKILL');
    while (cgroups().length > 0) await delay(10);
  });

  test('that ends without daemons leaves nothing', async () => {
    start();

    expect(await agent.sh('exit 3', { killTree: true })).toMatchObject({ exitCode: 3 });
    expect(cgroups()).toEqual([]);
  });

  test('that cannot start leaves nothing', async () => {
    start();

    await agent.exec(['missing'], { killTree: true });

    expect(cgroups()).toEqual([]);
  });

  test('has one apart from those of others', async () => {
    start();
    const one = await firstPid(`${DAEMON}; sleep 60`);
    const other = await firstPid(`${DAEMON}; sleep 60`);

    agent.send(encodeCancel(one.operation.id));
    await one.operation.done;

    expect(isAlive(other.pid)).toBe(true);
    agent.send(encodeCancel(other.operation.id));
    await other.operation.done;
  });

  test('without the option is in the cgroup of the agent, and its daemons live on', async () => {
    start();
    const operation = agent.spawn(['sh', '-c', `${DAEMON}; sleep 60`]);
    await operation.until((o) => o.received(Stream.output).includes('\n'));
    const pid = Number.parseInt(operation.received(Stream.output).toString(), 10);

    agent.send(encodeCancel(operation.id));
    await operation.done;

    expect(isAlive(pid)).toBe(true);
    process.kill(pid, 'SIGKILL');
  });
});

describe.runIf(canMount('tmpfs'))('where there is no cgroup2', () => {
  test('the start fails', async () => {
    agent = new HostAgent(...under('tmpfs', buildHostAgent()));

    expect(await agent.sh('true', { killTree: true })).toMatchObject({
      errno: EOPNOTSUPP,
      stage: ExecStage.tree,
    });
  });
});
