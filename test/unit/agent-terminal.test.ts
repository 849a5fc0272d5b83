import { readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

import { describe, expect, test } from 'vitest';

import {
  type ExecRequest,
  encodeCancel,
  encodeData,
  encodeEnd,
  encodeExec,
  encodeFrame,
  encodeRecord,
  encodeResize,
  encodeWindow,
  FrameType,
  Stream,
  Tag,
} from '../../lib/internal/protocol/protocol.js';
import { buildHostAgent, HostAgent, type TestOperation, WIDE_OPEN } from '../helpers/host-agent.js';
import { sharedAgent } from '../helpers/shared-agent.js';

const { EPROTO, ECANCELED } = constants.errno;

let agent: HostAgent;

sharedAgent((made) => {
  agent = made;
});

const SIZE = { columns: 80, rows: 24 };

function start(script: string, options: Partial<ExecRequest> = {}): TestOperation {
  return agent.spawn(['sh', '-c', script], {
    stdin: true,
    stderr: false,
    terminal: SIZE,
    ...options,
  });
}

function type(operation: TestOperation, text: string): void {
  agent.send(encodeData(operation.id, operation.inputSent, Buffer.from(text)));
  operation.inputSent += Buffer.byteLength(text);
}

function end(operation: TestOperation): void {
  agent.send(encodeEnd(operation.id, operation.inputSent));
}

async function shows(operation: TestOperation, text: string): Promise<void> {
  await operation.until((o) => o.received(Stream.output).toString().includes(text));
}

/** What a command without input shows. */
async function output(script: string, options: Partial<ExecRequest> = {}): Promise<string> {
  const { stdout } = await start(script, { stdin: false, ...options }).done;
  return stdout.toString();
}

function isAlive(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return false;
  }
}

describe('a terminal', () => {
  test('is all three streams', async () => {
    const shown = await output('for fd in 0 1 2; do test -t $fd && echo $fd; done; echo err >&2');

    expect(shown).toBe('0\r\n1\r\n2\r\nerr\r\n');
  });

  test('has the size that was asked for', async () => {
    expect(await output('stty size', { terminal: { columns: 65_535, rows: 1 } })).toBe(
      '1 65535\r\n',
    );
  });

  test('controls the session', async () => {
    expect(await output('echo here > /dev/tty')).toBe('here\r\n');
  });

  test('is no descriptor besides the three', async () => {
    expect(await output('ls /proc/self/fd | wc -l')).toBe('4\r\n');
  });

  test('answers each line that is typed, and echoes it', async () => {
    const operation = start('while read line; do echo "got $line"; done');
    type(operation, 'one\n');
    await shows(operation, 'got one\r\n');
    type(operation, 'two\n');
    await shows(operation, 'got two\r\n');
    end(operation);

    const { stdout, exitCode } = await operation.done;
    expect(exitCode).toBe(0);
    expect(stdout.toString()).toBe('one\r\ngot one\r\ntwo\r\ngot two\r\n');
  });

  test('interrupts its foreground with ^C', async () => {
    const operation = start(
      'trap "echo caught; exit 7" INT; echo ready; while :; do sleep 1; done',
    );
    await shows(operation, 'ready');

    type(operation, '\x03');

    const { stdout, exitCode } = await operation.done;
    expect(exitCode).toBe(7);
    expect(stdout.toString()).toContain('caught');
  });

  test('tells its foreground that it was resized', async () => {
    const script = 'trap "stty size; exit" WINCH; echo ready; while :; do sleep 0.05; done';
    const operation = start(script);
    await shows(operation, 'ready');

    agent.send(encodeResize(operation.id, { columns: 132, rows: 50 }));

    expect((await operation.done).stdout.toString()).toBe('ready\r\n50 132\r\n');
  });

  test('keeps its size when the new one is none', async () => {
    const operation = start('read line; stty size');
    agent.send(encodeResize(operation.id, { columns: 0, rows: 50 }));
    type(operation, 'go\n');

    expect((await operation.done).stdout.toString()).toBe('go\r\n24 80\r\n');
  });

  test.runIf(process.getuid?.() === 0)('belongs to the user', async () => {
    expect(await output('stat -c %u $(tty); echo x > $(tty)', { user: 12_345 })).toBe(
      '12345\r\nx\r\n',
    );
  });
});

describe('the end of input', () => {
  test('that comes with the request ends a reader', async () => {
    expect(await output('cat; echo ended')).toBe('ended\r\n');
  });

  test('behind a line ends a reader', async () => {
    const operation = start('cat; echo ended');
    type(operation, 'text\n');
    end(operation);

    expect((await operation.done).stdout.toString()).toContain('text\r\ntext\r\nended');
  });

  test('behind a part of a line hands that over, and ends a reader', async () => {
    const operation = start('cat; echo ended');
    type(operation, 'text');
    end(operation);

    expect((await operation.done).stdout.toString()).toBe('texttextended\r\n');
  });

  test('is the character that the program has set', async () => {
    const operation = start('stty eof ^X; echo ready; cat; echo ended');
    await shows(operation, 'ready');
    end(operation);

    expect((await operation.done).stdout.toString()).toBe('ready\r\nended\r\n');
  });

  test('is one byte to a program that reads them singly', async () => {
    const operation = start('stty raw -echo; echo ready; head -c 2 | od -An -tx1');
    await shows(operation, 'ready');
    type(operation, 'a');
    end(operation);

    expect((await operation.done).stdout.toString()).toContain('61 04');
  });
});

describe('bytes', () => {
  test('of 1 MiB arrive unharmed', async () => {
    const { stdout } = await start('stty raw; yes 0123456789abcde | head -c 1048576').done;

    expect(stdout).toHaveLength(1048576);
    expect(stdout.subarray(1048560).toString()).toBe('0123456789abcde\n');
  });

  test('of 1 MiB are typed unharmed, however slowly they are read', async () => {
    const operation = start('stty raw -echo; echo ready; sleep 0.2; head -c 1048576 | sha256sum');
    await shows(operation, 'ready');
    const bytes = Buffer.alloc(1048576, '0123456789abcdef\n');
    await agent.feed(operation, bytes);

    const { stdout } = await operation.done;
    const { createHash } = await import('node:crypto');
    expect(stdout.toString()).toContain(createHash('sha256').update(bytes).digest('hex'));
  });

  test('that nobody reads stall the program and nothing else', async () => {
    const operation = start('yes | head -c 300000; echo end', { outputLimit: 1000 });
    await operation.until((o) => o.received(Stream.output).length === 1000);
    await delay(100);

    expect((await agent.sh('echo other')).stdout.toString()).toBe('other\n');
    expect(operation.received(Stream.output)).toHaveLength(1000);
    agent.send(encodeWindow(operation.id, Stream.output, WIDE_OPEN));
    const { stdout } = await operation.done;
    expect(stdout.toString().endsWith('y\r\nend\r\n')).toBe(true);
    expect(stdout).toHaveLength(450_000 + 5);
  });

  test('left by a program that has exited wait for their window', async () => {
    const operation = start('stty raw; yes | head -c 20000', { outputLimit: 6 });
    await operation.until((o) => o.received(Stream.output).length === 6);
    await delay(100);

    agent.send(encodeWindow(operation.id, Stream.output, WIDE_OPEN));

    expect((await operation.done).stdout).toHaveLength(20_000);
  });
});

describe('behind its command', () => {
  test('the terminal is hung up, and the reply is not held up by who keeps it', async () => {
    const operation = start('trap "" HUP; (sleep 60; :) & echo $!; sleep 0.2');

    const { stdout, exitCode } = await operation.done;

    expect(exitCode).toBe(0);
    const pid = Number.parseInt(stdout.toString(), 10);
    expect(isAlive(pid)).toBe(true);
    process.kill(pid, 'SIGKILL');
  });

  test('its descriptors are closed', async () => {
    const before = readFileSync(`/proc/${agent.pid}/status`, 'latin1').match(/FDSize.*/)?.[0];
    for (let i = 0; i < 40; i++) await output('true');

    const { stdout } = await agent.sh(`ls -l /proc/${agent.pid}/fd | grep -c ptmx || :`);
    expect(stdout.toString()).toBe('0\n');
    expect(readFileSync(`/proc/${agent.pid}/status`, 'latin1')).toContain(before);
  });
});

// Each takes three, one after the other: any of them can be the one that is missing.
test.each([40, 41, 42])('more terminals than %d descriptors allow', async (descriptors) => {
  const script = `ulimit -S -n ${descriptors}; exec "$0"`;
  const limited = new HostAgent('/bin/sh', ['-c', script, buildHostAgent()]);
  const terminals = Array.from({ length: 24 }, () =>
    limited.spawn(['sh', '-c', 'stty size; read line'], {
      stdin: true,
      stderr: false,
      terminal: SIZE,
    }),
  );
  for (const operation of terminals) await shows(operation, '24 80');

  for (const { id } of terminals) limited.send(encodeCancel(id));
  const results = await Promise.all(terminals.map(({ done }) => done));

  expect(results.filter(({ errno }) => errno !== ECANCELED)).toEqual([]);
  expect(await limited.close()).toMatchObject({ code: 0, stderr: '' });
});

test('a cancelled command is killed, and its terminal hung up', async () => {
  const operation = start('echo ready; sleep 60');
  await shows(operation, 'ready');

  agent.send(encodeCancel(operation.id));

  expect(await operation.done).toMatchObject({ errno: ECANCELED, signal: 9 });
});

describe('a request that makes no sense gets EPROTO', () => {
  const size = (...values: number[]) => Buffer.from(Uint32Array.from(values).buffer);

  test.each([
    ['no columns', size(0, 24)],
    ['too many rows', size(80, 65_536)],
    ['half a size', size(80)],
  ])('%s', async (_what, bytes) => {
    const payload = [
      encodeRecord(Tag.flags, size(2)),
      encodeRecord(Tag.arg, 'true'),
      encodeRecord(Tag.terminal, bytes),
    ];
    const operation = agent.start((id) => encodeFrame({ type: FrameType.exec, id, payload }));

    expect(await operation.done).toMatchObject({ errno: EPROTO, stage: null });
  });

  test.each([
    ['an error stream of its own', { stdout: true, stderr: true }],
    ['no output', { stdout: false, stderr: false }],
  ])('%s', async (_what, streams) => {
    const request = { args: ['true'], terminal: SIZE, ...streams };

    expect(await agent.start((id) => encodeExec(id, request)).done).toMatchObject({
      errno: EPROTO,
    });
  });

  test('but a resize of a command without a terminal does nothing', async () => {
    const operation = agent.spawn(['sleep', '0.1']);
    agent.send(encodeResize(operation.id, SIZE));

    expect(await operation.done).toMatchObject({ errno: 0, exitCode: 0 });
  });
});
