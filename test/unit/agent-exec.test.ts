import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';

import { describe, expect, test } from 'vitest';

import {
  ExecStage,
  encodeCancel,
  encodePing,
  encodeSignal,
  encodeWindow,
  Stream,
} from '../../lib/internal/protocol/protocol.js';
import { buildHostAgent, HostAgent } from '../helpers/host-agent.js';
import { sharedAgent } from '../helpers/shared-agent.js';

const { ENOENT, EACCES, ENOTDIR, ECANCELED, E2BIG } = constants.errno;

let agent: HostAgent;
let directory: string;

sharedAgent((...made) => {
  [agent, directory] = made;
});

function isAlive(pid: number): boolean {
  const state = existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'latin1') : '';
  return state !== '' && !/\) [ZX] /.test(state);
}

async function waitFor(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe('a command', () => {
  test('returns stdout and stderr apart, and its exit code', async () => {
    const result = await agent.sh('echo out; echo err >&2; exit 3');

    expect(result).toMatchObject({ errno: 0, exitCode: 3, signal: null });
    expect(result.stdout.toString()).toBe('out\n');
    expect(result.stderr.toString()).toBe('err\n');
  });

  test('returns the signal that ended it', async () => {
    const result = await agent.sh('kill -TERM $$');

    expect(result).toMatchObject({ errno: 0, exitCode: null, signal: 15 });
  });

  test('gets exactly the given arguments, empty and non-ASCII ones too', async () => {
    const result = await agent.exec(['printf', '[%s]', '', 'a b', '\u00e4\n', '$HOME']);

    expect(result.stdout.toString()).toBe('[][a b][\u00e4\n][$HOME]');
  });

  test('gets exactly the given environment', async () => {
    const result = await agent.exec(['/usr/bin/env'], { env: ['A=1', 'EMPTY=', 'B=x=y'] });

    expect(result.stdout.toString()).toBe('A=1\nEMPTY=\nB=x=y\n');
  });

  test('gets an empty environment when none is given', async () => {
    const result = await agent.exec(['/usr/bin/env'], { env: [] });

    expect(result.stdout.toString()).toBe('');
  });

  test('runs in the given directory', async () => {
    const result = await agent.exec(['/bin/pwd'], { cwd: directory });

    expect(result.stdout.toString()).toBe(`${directory}\n`);
  });

  test('runs with nothing but its three descriptors', async () => {
    const result = await agent.sh('ls /proc/self/fd | wc -l; readlink /proc/self/fd/0');

    // ls itself has one open for the listing.
    expect(result.stdout.toString().split(/\s+/)).toEqual(['4', '/dev/null', '']);
  });

  test('runs with every signal unblocked and at its default', async () => {
    const result = await agent.exec(['grep', '-E', 'Sig(Blk|Ign)', '/proc/self/status']);

    expect(result.stdout.toString()).toBe('SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n');
  });

  test('leads a session and a process group of its own', async () => {
    const result = await agent.sh('cut -d" " -f1,5,6 /proc/$$/stat');

    const [pid, group, session] = result.stdout.toString().trim().split(' ');
    expect(group).toBe(pid);
    expect(session).toBe(pid);
    expect(result.pid).toBe(Number(pid));
  });

  test('takes 200 KiB of arguments', async () => {
    const long = 'x'.repeat(100_000);

    const result = await agent.exec(['printf', '%s%s', long, long]);

    expect(result.stdout.toString()).toBe(long + long);
  });

  test('with an argument above the limit of the kernel fails with E2BIG', async () => {
    const result = await agent.exec(['true', 'x'.repeat(200_000)]);

    expect(result).toMatchObject({ errno: E2BIG, stage: ExecStage.execute });
  });

  test('has nowhere to write when no stream is asked for', async () => {
    const result = await agent.sh('echo lost', { stdout: false, stderr: false });

    expect(result).toMatchObject({ errno: 0, exitCode: 0 });
    expect(result.stdout).toHaveLength(0);
  });
});

describe('a command that cannot start', () => {
  test('is not found on the path', async () => {
    expect(await agent.exec(['no-such-program'])).toMatchObject({
      errno: ENOENT,
      stage: ExecStage.execute,
      pid: null,
    });
  });

  test('is looked up on the path of its own environment', async () => {
    mkdirSync(join(directory, 'bin'));
    writeFileSync(join(directory, 'bin', 'tool'), '#!/bin/sh\necho here\n', { mode: 0o755 });

    const found = await agent.exec(['tool'], { env: [`PATH=/nowhere:${directory}/bin`] });
    const missing = await agent.exec(['tool']);

    expect(found.stdout.toString()).toBe('here\n');
    expect(missing.errno).toBe(ENOENT);
  });

  test('is found on the default path when the environment has none', async () => {
    expect(await agent.exec(['true'], { env: [] })).toMatchObject({ errno: 0, exitCode: 0 });
  });

  test('is not executable', async () => {
    writeFileSync(join(directory, 'plain'), 'text', { mode: 0o644 });

    expect(await agent.exec([join(directory, 'plain')])).toMatchObject({
      errno: EACCES,
      stage: ExecStage.execute,
    });
  });

  test('is not executable anywhere on the path', async () => {
    mkdirSync(join(directory, 'denied'));
    writeFileSync(join(directory, 'denied', 'plain'), 'text', { mode: 0o644 });

    const result = await agent.exec(['plain'], { env: [`PATH=${directory}/denied:/nowhere`] });

    expect(result.errno).toBe(EACCES);
  });

  test('has a directory that does not exist', async () => {
    expect(await agent.exec(['true'], { cwd: '/no/such/place' })).toMatchObject({
      errno: ENOENT,
      stage: ExecStage.cwd,
    });
  });

  test('has a directory that is a file', async () => {
    expect(await agent.exec(['true'], { cwd: '/etc/passwd' })).toMatchObject({
      errno: ENOTDIR,
      stage: ExecStage.cwd,
    });
  });

  test('is an empty name', async () => {
    expect(await agent.exec([''])).toMatchObject({ errno: ENOENT, stage: ExecStage.execute });
  });
});

describe('a script without #!', () => {
  test('is run by the shell, with its arguments', async () => {
    writeFileSync(join(directory, 'script'), 'echo "$0 $1"\n', { mode: 0o755 });

    const result = await agent.exec([join(directory, 'script'), 'one']);

    expect(result.stdout.toString()).toBe(`${directory}/script one\n`);
  });
});

describe('input', () => {
  test('of 1 MiB comes back unharmed through cat', async () => {
    const bytes = Buffer.from(Array.from({ length: 2 ** 20 }, (_, i) => (i * 7 + (i >> 8)) & 0xff));
    const operation = agent.spawn(['cat'], { stdin: true });

    await agent.feed(operation, bytes);

    const result = await operation.done;
    expect(result.exitCode).toBe(0);
    expect(result.stdout.equals(bytes)).toBe(true);
  });

  test('ends at once when the end follows the request', async () => {
    const operation = agent.spawn(['cat'], { stdin: true });
    await agent.feed(operation, Buffer.alloc(0));

    expect(await operation.done).toMatchObject({ errno: 0, exitCode: 0 });
  });

  test('is not granted beyond a window when nobody reads it', async () => {
    const operation = agent.spawn(['sleep', '60'], { stdin: true });
    void agent.feed(operation, Buffer.alloc(300_000)).catch(() => {});
    await waitFor(() => operation.inputSent === operation.inputLimit);
    await new Promise((resolve) => setTimeout(resolve, 100));

    // What the pipe took, and a window held for it.
    expect(operation.inputSent).toBeLessThanOrEqual(65536 * 2);
    agent.send(encodeCancel(operation.id));
    await operation.done;
  });

  test('is dropped without an error when the command closes it', async () => {
    const operation = agent.spawn(['sh', '-c', 'exec 0<&-; sleep 0.2; echo done'], { stdin: true });

    await agent.feed(operation, Buffer.alloc(300_000));

    expect((await operation.done).stdout.toString()).toBe('done\n');
  });

  test('for a command that exits before it reads is dropped', async () => {
    const operation = agent.spawn(['true'], { stdin: true });
    void agent.feed(operation, Buffer.alloc(300_000)).catch(() => {});

    expect(await operation.done).toMatchObject({ errno: 0, exitCode: 0 });
  });
});

describe('output', () => {
  test('of 8 MiB arrives unharmed', async () => {
    const result = await agent.sh('yes 0123456789abcde | head -c 8388608');

    expect(result.stdout).toHaveLength(8388608);
    expect(result.stdout.subarray(8388592).toString()).toBe('0123456789abcde\n');
  });

  test('stops at its window, keeps the command waiting, and goes on when it opens', async () => {
    const operation = agent.spawn(['sh', '-c', 'yes | head -c 300000'], { outputLimit: 1000 });
    await operation.until((o) => o.received(Stream.output).length === 1000);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(operation.received(Stream.output)).toHaveLength(1000);

    agent.send(encodeWindow(operation.id, Stream.output, 300_000));

    expect((await operation.done).stdout).toHaveLength(300_000);
  });

  test('that is stalled does not hold up the other stream nor other commands', async () => {
    const script = 'yes | head -c 50000; echo err >&2; sleep 60';
    const stalled = agent.spawn(['sh', '-c', script], { outputLimit: 0 });
    await stalled.until((o) => o.received(Stream.error).toString() === 'err\n');

    const other = await agent.sh('echo other');

    expect(other.stdout.toString()).toBe('other\n');
    expect(stalled.received(Stream.output)).toHaveLength(0);
    agent.send(encodeCancel(stalled.id));
    await stalled.done;
  });

  test('left in the pipe by a command that has exited waits for its window', async () => {
    const operation = agent.spawn(['sh', '-c', 'echo first; echo second'], { outputLimit: 6 });
    await operation.until((o) => o.received(Stream.output).length === 6);
    await new Promise((resolve) => setTimeout(resolve, 100));

    agent.send(encodeWindow(operation.id, Stream.output, 1000));

    const result = await operation.done;
    expect(result.stdout.toString()).toBe('first\nsecond\n');
    expect(result.exitCode).toBe(0);
  });

  test('that is empty ends without a window', async () => {
    expect(await agent.exec(['true'], { outputLimit: 0, errorLimit: 0 })).toMatchObject({
      exitCode: 0,
    });
  });

  test('that fills its window exactly ends without another', async () => {
    const result = await agent.exec(['printf', '12345'], { outputLimit: 5 });

    expect(result.stdout.toString()).toBe('12345');
  });

  test('ignores a window that goes backwards', async () => {
    const operation = agent.spawn(['sh', '-c', 'sleep 0.1; echo text'], { outputLimit: 100 });
    agent.send(encodeWindow(operation.id, Stream.output, 2));

    expect((await operation.done).stdout.toString()).toBe('text\n');
  });
});

describe('the report that a command has started', () => {
  test('comes at once by default', async () => {
    const operation = agent.spawn(['sleep', '60']);

    await operation.until((o) => o.messages.some(({ type }) => type === 'started'));

    agent.send(encodeCancel(operation.id));
    await operation.done;
  });

  test('waits for a ping when it may', async () => {
    const operation = agent.spawn(['sleep', '60'], { lazyStart: true });
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(operation.messages).toEqual([]);

    await agent.start((id) => encodePing(id)).done;

    expect(operation.messages).toMatchObject([{ type: 'started' }]);
    agent.send(encodeCancel(operation.id));
    await operation.done;
  });
});

describe('signals', () => {
  test('reach the whole process group', async () => {
    const script =
      'trap "echo parent; exit 0" USR1; (trap "echo child; exit" USR1; echo ready; while :; do sleep 0.01; done) & wait; wait';
    const operation = agent.spawn(['sh', '-c', script]);
    await operation.until((o) => o.received(Stream.output).toString() === 'ready\n');

    agent.send(encodeSignal(operation.id, 10));

    const result = await operation.done;
    expect(result.stdout.toString()).toContain('parent\n');
  });

  test('for a command that is over do nothing', async () => {
    const operation = agent.spawn(['true']);
    await operation.done;

    agent.send(encodeSignal(operation.id, 9), encodeCancel(operation.id));

    expect((await agent.sh('echo fine')).stdout.toString()).toBe('fine\n');
  });

  test('with an impossible number do nothing', async () => {
    const operation = agent.spawn(['sleep', '0.1']);

    agent.send(encodeSignal(operation.id, 0), encodeSignal(operation.id, 65));

    expect(await operation.done).toMatchObject({ exitCode: 0 });
  });
});

describe('cancelling a command', () => {
  test('kills its whole process group before it replies', async () => {
    const script = 'sleep 60 & sleep 60 & trap "" TERM INT HUP; echo $$ $!; wait';
    const operation = agent.spawn(['sh', '-c', script]);
    await operation.until((o) => o.received(Stream.output).length > 0);
    const pids = operation.received(Stream.output).toString().trim().split(' ').map(Number);

    agent.send(encodeCancel(operation.id));

    expect(await operation.done).toMatchObject({ errno: ECANCELED, signal: 9 });
    expect(pids.map(isAlive)).toEqual([false, false]);
  });

  test('kills what a leader that has exited left behind, while its output is stalled', async () => {
    const script = 'sleep 60 & echo $! >&2; echo text';
    const operation = agent.spawn(['sh', '-c', script], { outputLimit: 0 });
    await operation.until((o) => o.received(Stream.error).length > 0);
    await new Promise((resolve) => setTimeout(resolve, 100));
    const pid = Number(operation.received(Stream.error).toString());
    expect(isAlive(pid)).toBe(true);

    agent.send(encodeCancel(operation.id));

    expect(await operation.done).toMatchObject({ errno: ECANCELED, exitCode: 0 });
    expect(isAlive(pid)).toBe(false);
  });

  test('delivers the output so far, as far as the window allows', async () => {
    const operation = agent.spawn(['sh', '-c', 'echo early; exec sleep 60'], { outputLimit: 3 });
    await operation.until((o) => o.received(Stream.output).length === 3);

    agent.send(encodeCancel(operation.id));

    const result = await operation.done;
    expect(result.stdout.toString()).toBe('ear');
    expect(result.errno).toBe(ECANCELED);
  });

  test('leaves other commands alone', async () => {
    const other = agent.spawn(['sh', '-c', 'sleep 0.2; echo survived']);
    const operation = agent.spawn(['sleep', '60']);

    agent.send(encodeCancel(operation.id));
    await operation.done;

    expect((await other.done).stdout.toString()).toBe('survived\n');
  });

  // A member of the group whose parent, outside of it, never reaps it stays a zombie, and the
  // group with it. That must not keep the host waiting.
  test('does not wait for zombies that their parent does not reap', async () => {
    const script = [
      'import os,sys,time',
      'group=os.getpgrp()',
      'if os.fork()==0:',
      '  child=os.fork()',
      '  if child==0: time.sleep(60)',
      '  os.setpgid(0,0)',
      '  print(child,os.getpid(),flush=True)',
      '  time.sleep(3)',
      '  os._exit(0)',
      'time.sleep(60)',
    ].join('\n');
    const operation = agent.spawn(['python3', '-c', script]);
    await operation.until((o) => o.received(Stream.output).length > 0);

    const before = performance.now();
    agent.send(encodeCancel(operation.id));

    expect(await operation.done).toMatchObject({ errno: ECANCELED });
    expect(performance.now() - before).toBeLessThan(2500);
  });
});

describe('a daemonised child', () => {
  test('does not hold up the reply, and can write on without harm', async () => {
    const marker = join(directory, 'daemon-done');
    const script = `(sleep 0.3; yes | head -c 500000; echo more >&2; touch ${marker}) & echo started`;

    const result = await agent.sh(script);

    expect(result).toMatchObject({ errno: 0, exitCode: 0 });
    expect(result.stdout.toString()).toBe('started\n');
    await waitFor(() => existsSync(marker));
  });

  test('that writes all the time does not hold up the reply', async () => {
    const result = await agent.sh('yes & echo $! >&2');

    expect(result).toMatchObject({ errno: 0, exitCode: 0 });
    process.kill(Number(result.stderr.toString()), 'SIGKILL');
  });

  test('is reaped when it exits', async () => {
    const result = await agent.sh('sleep 0.1 & echo $!');
    const pid = Number(result.stdout.toString());

    await waitFor(() => !existsSync(`/proc/${pid}`));
  });
});

test('200 commands at once all answer', async () => {
  const results = await Promise.all(
    Array.from({ length: 200 }, (_, i) => agent.sh(`echo out ${i}; echo err ${i} >&2; exit ${i}`)),
  );

  for (const [i, result] of results.entries()) {
    expect(result).toMatchObject({ errno: 0, exitCode: i });
    expect(result.stdout.toString()).toBe(`out ${i}\n`);
    expect(result.stderr.toString()).toBe(`err ${i}\n`);
  }
});

test('commands leave neither descriptors nor processes behind', async () => {
  const fresh = new HostAgent(buildHostAgent());
  await fresh.exec(['true']);
  const descriptors = () => readdirSync(`/proc/${fresh.pid}/fd`).length;
  const children = () => readFileSync(`/proc/${fresh.pid}/task/${fresh.pid}/children`, 'latin1');
  const before = descriptors();

  await Promise.all(Array.from({ length: 20 }, () => fresh.sh('echo text; sleep 0 &')));

  await waitFor(() => descriptors() === before && children() === '');
  await fresh.close();
});

test('more commands than the usual limit of descriptors allows still inherit that limit', async () => {
  const limited = new HostAgent('/bin/sh', ['-c', 'ulimit -S -n 64; exec "$0"', buildHostAgent()]);
  const commands = Array.from({ length: 60 }, () =>
    limited.spawn(['sh', '-c', 'read line; ulimit -S -n'], { stdin: true }),
  );
  await commands.at(-1)?.until((o) => o.messages.length > 0);

  await Promise.all(commands.map((operation) => limited.feed(operation, Buffer.from('go\n'))));

  const results = await Promise.all(commands.map(({ done }) => done));
  expect(results.filter(({ errno }) => errno !== 0)).toEqual([]);
  expect(new Set(results.map(({ stdout }) => stdout.toString()))).toEqual(new Set(['64\n']));
  expect(await limited.close()).toMatchObject({ code: 0, stderr: '' });
});
