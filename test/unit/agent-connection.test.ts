import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

import { VmError } from '../../lib/errors.js';
import type { ExecProcess } from '../../lib/exec.js';
import { GuestFs } from '../../lib/guest-fs.js';
import { AgentConnection } from '../../lib/internal/agent/connection.js';
import { startCommand } from '../../lib/internal/exec/start.js';
import {
  encodeFrame,
  encodeRecord,
  FrameType,
  PROTOCOL_VERSION,
  Stream,
  Tag,
} from '../../lib/internal/protocol/protocol.js';
import type { Guest } from '../../lib/internal/vm/guest.js';
import { AgentGuest, CountingHold, testGuest } from '../helpers/agent-guest.js';

// The other side is written out by hand here: what a hostile agent may send, and what one that
// stops answering does not.

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

const hello = encodeFrame({ type: FrameType.hello, value: PROTOCOL_VERSION });

const exitCode = (code: number): Buffer => encodeRecord(Tag.exitCode, uint32(code));

class HandWrittenAgent {
  readonly hold = new CountingHold();
  readonly received: { type: number; id: number }[] = [];
  receivedBytes = 0;
  disconnected = false;
  readonly agent: AgentConnection;
  readonly guest: Guest;
  readonly fs: GuestFs;

  constructor() {
    this.agent = new AgentConnection(
      {
        send: (data) => this.#onSend(Buffer.from(data)),
        consume: () => {},
        disconnect: () => {
          this.disconnected = true;
        },
      },
      this.hold,
      { pingIntervalMs: 20, cancelTimeoutMs: 60, exitGraceMs: 20 },
    );
    this.guest = testGuest('vm-x', this.agent, {}, this);
    this.fs = new GuestFs(this.guest);
  }

  exec(...[command, options]: Parameters<AgentGuest['exec']>): ExecProcess<string> {
    return startCommand(this.guest, command, options) as ExecProcess<string>;
  }

  say(...frames: Buffer[]): void {
    this.agent.receive(Buffer.concat(frames));
  }

  types(): number[] {
    return this.received.map(({ type }) => type);
  }

  #onSend(data: Buffer): void {
    this.receivedBytes += data.length;
    for (let at = 0; at < data.length; at += 24 + data.readUInt32LE(at)) {
      this.received.push({ type: data.readUInt16LE(at + 4), id: data.readUInt32LE(at + 8) });
    }
  }
}

let hostile: HandWrittenAgent;

beforeEach(() => {
  hostile = new HandWrittenAgent();
});

const flushed = (): Promise<void> => delay(1);

describe('greeting', () => {
  test('resolves hello', async () => {
    hostile.say(hello);

    expect(await hostile.agent.hello).toEqual({ kernel: '', agent: '' });
  });

  test.each([
    ['another version', encodeFrame({ type: FrameType.hello, value: PROTOCOL_VERSION + 1 })],
    ['another frame', encodeFrame({ type: FrameType.started, id: 1, value: 1 })],
    ['an unknown frame', encodeFrame({ type: 99 })],
    ['garbage', Buffer.alloc(64, 0xff)],
  ])('breaks off at %s', async (_, frame) => {
    hostile.say(frame);

    await expect(hostile.agent.hello).rejects.toMatchObject({ code: 'ERR_VM_AGENT_PROTOCOL' });
    expect(hostile.disconnected).toBe(true);
  });

  test('passes on why the agent gave up', async () => {
    hostile.say(
      encodeFrame({ type: FrameType.fatal, payload: [Buffer.from('no \x1b[2J memory')] }),
    );

    await expect(hostile.agent.hello).rejects.toThrow('no \ufffd[2J memory');
  });
});

describe('a hostile agent', () => {
  beforeEach(() => {
    hostile.say(hello);
  });

  const data = (id: number, offset: number, size: number, stream: number = Stream.output): Buffer =>
    encodeFrame({ type: FrameType.data, stream, id, offset, payload: [Buffer.alloc(size)] });

  test.each([
    ['a second hello', () => [hello]],
    ['data of no operation', () => [data(77, 0, 1)]],
    ['a reply to nothing', () => [encodeFrame({ type: FrameType.reply, id: 77 })]],
    ['data that nobody asked for', (id: number) => [data(id, 0, 1, Stream.error)]],
    [
      'data beyond the window',
      (id: number) => Array.from({ length: 33 }, (_, i) => data(id, i * 65536, 65536)),
    ],
    ['data at a wrong offset', (id: number) => [data(id, 5, 1)]],
    [
      'data behind the end',
      (id: number) => [
        encodeFrame({ type: FrameType.end, stream: Stream.output, id }),
        data(id, 0, 1),
      ],
    ],
    [
      'two starts',
      (id: number) => [
        encodeFrame({ type: FrameType.started, id, value: 5 }),
        encodeFrame({ type: FrameType.started, id, value: 5 }),
      ],
    ],
    [
      'a frame that is too large',
      () => {
        const frame = encodeFrame({ type: FrameType.data });
        frame.writeUInt32LE(65537, 0);
        return [frame];
      },
    ],
  ])('that sends %s ends its connection and fails what was pending', async (_, frames) => {
    const handle = hostile.exec('x', { stderr: 'ignore' });
    const failure = handle.catch((error: unknown) => error);
    await flushed();

    hostile.say(...frames(hostile.received[0]?.id ?? 0));

    expect(await failure).toBeInstanceOf(VmError);
    expect(await failure).toMatchObject({
      code: 'ERR_VM_AGENT_PROTOCOL',
      stdout: expect.any(String) as string,
    });
    expect(hostile.disconnected).toBe(true);
    expect(hostile.hold.held).toBe(0);
    await expect(hostile.fs.stat('/')).rejects.toMatchObject({ code: 'ERR_VM_AGENT_PROTOCOL' });
  });

  test('that reports no status fails that command', async () => {
    const handle = hostile.exec('x');
    await flushed();

    hostile.say(encodeFrame({ type: FrameType.reply, id: hostile.received[0]?.id ?? 0 }));

    await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_AGENT_PROTOCOL' });
    expect(hostile.disconnected).toBe(false);
  });

  test('that kills a command for want of memory fails it', async () => {
    const handle = hostile.exec('x');
    await flushed();
    const killed = encodeRecord(Tag.signal, uint32(9));

    const id = hostile.received[0]?.id ?? 0;
    hostile.say(encodeFrame({ type: FrameType.reply, id, value: 12, payload: [killed] }));

    await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_EXEC', errno: -12 });
  });

  test('that reports an errno nobody knows still makes an error', async () => {
    const stat = hostile.fs.stat('/x');
    await flushed();

    hostile.say(
      encodeFrame({ type: FrameType.reply, id: hostile.received[0]?.id ?? 0, value: 4000 }),
    );

    await expect(stat).rejects.toMatchObject({ errno: -4000, code: 'UNKNOWN_4000', path: '/x' });
  });

  test('that lists names with a slash fails readdir()', async () => {
    const list = hostile.fs.readdir('/x');
    await flushed();
    const id = hostile.received[0]?.id ?? 0;
    const entry = Buffer.concat([Buffer.from([4, 0, 8, 0]), Buffer.from('../x')]);

    hostile.say(
      encodeFrame({ type: FrameType.data, stream: Stream.output, id, payload: [entry] }),
      encodeFrame({ type: FrameType.end, stream: Stream.output, id, offset: entry.length }),
      encodeFrame({ type: FrameType.reply, id }),
    );

    await expect(list).rejects.toMatchObject({ code: 'ERR_VM_AGENT_PROTOCOL' });
  });

  test('that grants an endless window and reads nothing does not fill the host’s memory', async () => {
    const handle = hostile.exec('x');
    const { stdin } = handle;
    await flushed();
    const id = hostile.received[0]?.id ?? 0;
    hostile.say(encodeFrame({ type: FrameType.window, id, offset: Number.MAX_SAFE_INTEGER }));

    const chunk = Buffer.alloc(256 * 1024);
    let accepted = 0;
    void (async () => {
      for (let i = 0; i < 64; i++) {
        await new Promise((resolve) => stdin.write(chunk, resolve));
        accepted++;
      }
    })();
    await delay(50);

    expect(hostile.receivedBytes).toBeLessThan(2 * 1024 * 1024);
    expect(accepted).toBeLessThan(8);
    hostile.agent.fail(() => new Error('over'));
    await handle.catch(() => {});
  });

  test('that sends single bytes costs no more than they are', async () => {
    const handle = hostile.exec('x', { maxOutputBytes: 200_000 });
    const result = handle.then((value) => value);
    await flushed();
    const id = hostile.received[0]?.id ?? 0;
    for (let offset = 0; offset < 200_000; offset += 1000) {
      hostile.say(...Array.from({ length: 1000 }, (_, i) => data(id, offset + i, 1)));
    }
    hostile.say(
      encodeFrame({ type: FrameType.end, stream: Stream.output, id, offset: 200_000 }),
      encodeFrame({ type: FrameType.end, stream: Stream.error, id }),
      encodeFrame({ type: FrameType.reply, id, payload: [exitCode(0)] }),
    );

    expect((await result).stdout.length).toBe(200_000);
  });
});

describe('an agent that does not answer', () => {
  beforeEach(() => {
    hostile.say(hello);
  });

  test('is ERR_VM_AGENT_UNRESPONSIVE for everything that waits', async () => {
    const handle = hostile.exec('x');
    const stat = hostile.fs.stat('/');

    await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_AGENT_UNRESPONSIVE' });
    await expect(stat).rejects.toMatchObject({ code: 'ERR_VM_AGENT_UNRESPONSIVE' });
    expect(hostile.types()).toContain(FrameType.ping);
    expect(hostile.hold.held).toBe(0);
  });

  // Each new operation once started the count over, so that a busy caller never heard of it.
  test('is noticed however often it is asked for something', async () => {
    const first = vi.fn();
    hostile.exec('x').then(first, first);
    const asking = setInterval(() => void hostile.fs.stat('/').catch(() => {}), 2);

    await vi.waitFor(() => expect(first).toHaveBeenCalledOnce(), 5000);

    clearInterval(asking);
    expect(first.mock.calls[0]?.[0]).toMatchObject({ code: 'ERR_VM_AGENT_UNRESPONSIVE' });
  });

  test('is left in peace while it answers pings', async () => {
    const handle = hostile.exec('x');
    const settled = vi.fn();
    handle.then(settled, settled);
    for (let i = 0; i < 30; i++) {
      await delay(5);
      const ping = hostile.received.findLast(({ type }) => type === FrameType.ping);
      if (ping === undefined || ping.id === 0) continue;
      hostile.say(encodeFrame({ type: FrameType.reply, id: ping.id }));
      ping.id = 0;
    }

    expect(settled).not.toHaveBeenCalled();
    hostile.agent.fail(() => new Error('over'));
  });

  test('is left in peace while it says anything, though pings wait behind other work', async () => {
    const handle = hostile.exec('x', { stdin: 'pipe' });
    const settled = vi.fn();
    handle.then(settled, settled);
    await flushed();
    const id = hostile.received[0]?.id ?? 0;
    for (let i = 1; i <= 30; i++) {
      await delay(5);
      hostile.say(
        encodeFrame({ type: FrameType.window, stream: Stream.input, id, offset: 2 ** 20 * i }),
      );
    }

    expect(hostile.types()).toContain(FrameType.ping);
    expect(settled).not.toHaveBeenCalled();
    hostile.agent.fail(() => new Error('over'));
  });

  test('may answer late: what it says about abandoned operations is ignored', async () => {
    await hostile.fs.stat('/').catch(() => {});
    const { id } = hostile.received[0] ?? { id: 0 };

    hostile.say(
      encodeFrame({ type: FrameType.end, stream: Stream.output, id }),
      encodeFrame({ type: FrameType.reply, id, value: 2 }),
    );

    expect(hostile.disconnected).toBe(false);
    const stat = hostile.fs.stat('/gone');
    await flushed();
    hostile.say(
      encodeFrame({ type: FrameType.reply, id: hostile.received.at(-1)?.id ?? 0, value: 2 }),
    );
    await expect(stat).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('to a cancel is given up after a deadline', async () => {
    const handle = hostile.exec('x', { timeoutMs: 1 });

    await expect(handle).rejects.toMatchObject({ code: 'ERR_VM_AGENT_UNRESPONSIVE' });
    expect(hostile.types()).toContain(FrameType.cancel);
  });

  test('because it closed its connection is ERR_VM_AGENT_PROTOCOL, unless the VM’s exit says more', async () => {
    const first = hostile.exec('x');
    hostile.agent.closed();
    await expect(first).rejects.toMatchObject({ code: 'ERR_VM_AGENT_PROTOCOL' });

    hostile = new HandWrittenAgent();
    hostile.say(hello);
    const second = hostile.exec('x');
    hostile.agent.closed();
    hostile.agent.fail(
      () => new VmError({ code: 'ERR_VM_EXITED', message: 'off', detail: 'tail' }),
    );
    await expect(second).rejects.toMatchObject({ code: 'ERR_VM_EXITED', detail: 'tail' });
  });
});

describe('a real agent that hangs', () => {
  let guest: AgentGuest;

  beforeEach(async () => {
    guest = await AgentGuest.start({ pingIntervalMs: 300 });
  });

  afterEach(async () => {
    guest.signal('SIGCONT');
    await guest.stop();
  });

  test('is given up, and usable when it goes on', async () => {
    guest.signal('SIGSTOP');
    await expect(guest.exec('true')).rejects.toMatchObject({ code: 'ERR_VM_AGENT_UNRESPONSIVE' });

    guest.signal('SIGCONT');

    expect(await guest.exec('echo back')).toMatchObject({ stdout: 'back\n' });
  });
});
