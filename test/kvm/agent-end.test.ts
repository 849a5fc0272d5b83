import { once } from 'node:events';

import { beforeAll, describe, expect, test } from 'vitest';

import type { ExecProcess, Vm, VmError } from '../../lib/index.js';
import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { settledCounts } from '../helpers/process-counts.js';
import { sharedSnapshot } from '../helpers/shared-snapshot.js';

const PORT = 7000;

/** `code` of what a promise rejects with, or what it resolves with. */
function fate(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    (value) => value,
    (error: VmError) => error.code,
  );
}

async function drain(iterable: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of iterable);
}

/** One of everything that can wait for the guest, and does. */
async function everything(vm: Vm, attached: string): Promise<Record<string, Promise<unknown>>> {
  const socket = await vm.connect(PORT);
  const command = (): ExecProcess => vm.exec(['sleep', '987']);
  const [awaited, read, written, lines] = [command(), command(), command(), command()] as const;
  const input = written.stdin;
  const writer = vm.fs.createWriteStream('/full');
  const watcher = vm.fs.watch('/tmp');
  const waits = {
    exec: awaited,
    stdout: drain(read.stdout),
    stdin: new Promise((resolve, reject) => {
      input.write(Buffer.alloc(5_000_000), (error) => (error ? reject(error) : resolve('written')));
    }),
    exited: written.exited,
    lines: drain(lines.lines()),
    attach: vm.attach(attached),
    readFile: vm.fs.readFile('/quiet'),
    createReadStream: drain(vm.fs.createReadStream('/quiet')),
    createWriteStream: new Promise((_, reject) => {
      writer.on('error', reject);
      writer.write(Buffer.alloc(5_000_000));
    }),
    watch: drain(watcher),
    connect: once(socket, 'data'),
    waitForPort: vm.waitForPort(1),
  };
  const fates = Object.entries(waits).map(([name, wait]) => [name, fate(wait)] as const);
  await Promise.all([
    watcher.ready,
    ...[awaited, read, written, lines].map(({ started }) => started),
  ]);
  return Object.fromEntries(fates);
}

async function settled(fates: Record<string, Promise<unknown>>): Promise<Record<string, unknown>> {
  const entries = Object.entries(fates).map(async ([name, promise]) => [name, await promise]);
  return Object.fromEntries(await Promise.all(entries));
}

function allAre(code: string, fates: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.keys(fates).map((name) => [name, code]));
}

describe.runIf(hasKvm)('what waits for a guest', () => {
  let attached: string;
  const shared = sharedSnapshot(async (vm) => {
    await vm.fs.writeFile('/tcp_server', compileGuestProgram('tcp_server'), { mode: 0o755 });
    await vm.exec('mkfifo /quiet /full', { check: true });
    // Holds both ends of the FIFOs, so that neither is at its end.
    const holder = vm.exec('exec 3<>/quiet 4<>/full; /tcp_server 7000');
    attached = (await holder.started).id;
    await vm.waitForPort(PORT);
    (await vm.connect(PORT)).destroy();
  });

  beforeAll(async () => {
    // What a process has from its first fork on is no leak.
    await (await shared.snapshot.fork({ pool: 'never' })).close();
  });

  test.each([
    ['powers off', 'poweroff -f', 'power-off'],
    ['panics', 'echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger', 'panic'],
  ])('ends with ERR_VM_EXITED when it %s', async (_name, command, reason) => {
    const before = await settledCounts();
    const fork = await shared.snapshot.fork({ pool: 'never' });
    const waits = await everything(fork, attached);
    const snapshot = fate(fork.snapshot({ at: 'program', timeoutMs: 600_000 }));

    const last = fate(fork.exec(command));

    const fates = { ...(await settled(waits)), snapshot: await snapshot, last: await last };
    expect(fates).toEqual(allAre('ERR_VM_EXITED', fates));
    expect(await fork.exited).toMatchObject({ reason });
    await expect(fork.processes()).rejects.toMatchObject({ code: 'ERR_VM_EXITED' });
    await expect(fork.connect(PORT)).rejects.toMatchObject({ code: 'ERR_VM_EXITED' });
    expect(await fork.stats()).toMatchObject({ consoleBytes: expect.any(Number) });
    await fork.close();
    expect(await settledCounts()).toEqual(before);
  });

  // Takes the 30 s after which an agent counts as silent.
  test('ends with ERR_VM_AGENT_UNRESPONSIVE when its agent hangs', async () => {
    const fork = await shared.snapshot.fork({ pool: 'never' });
    const waits = await everything(fork, attached);
    const frozen = new Promise<void>((resolve) => {
      fork.on('console', () => fork.console().includes('agent is frozen') && resolve());
    });
    // No signal stops PID 1, but its cgroup can be frozen.
    const freezing = fate(
      fork.exec(
        'cd /sys/fs/cgroup; mkdir f; echo 1 >f/cgroup.procs; echo 1 >f/cgroup.freeze; ' +
          'until grep -q "frozen 1" f/cgroup.events; do :; done; echo agent is frozen >/dev/ttyS0',
      ),
    );
    await frozen;
    const late = fork.exec('true');
    const processes = fate(fork.processes());

    const snapshot = fate(fork.snapshot({ timeoutMs: 500 }));
    const connecting = fate(fork.connect(PORT, { timeoutMs: 500 }));
    const waiting = fate(fork.waitForPort(1, { timeoutMs: 500 }));

    expect(await snapshot).toBe('ERR_VM_PARK_TIMEOUT');
    expect(await connecting).toBe('ERR_VM_TIMEOUT');
    expect(await waiting).toBe('ERR_VM_TIMEOUT');
    const fates = { ...(await settled(waits)), freezing: await freezing, late: await fate(late) };
    expect(fates).toEqual(allAre('ERR_VM_AGENT_UNRESPONSIVE', fates));
    expect(await processes).toEqual([]);
    await fork.close();
  });
});
