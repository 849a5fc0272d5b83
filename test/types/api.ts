// Checked by the compiler alone (`npm run typecheck`): what callers may write, and what they get.

import { type BigIntStats, constants, type Dirent, type Stats } from 'node:fs';
import type { FileChangeInfo } from 'node:fs/promises';
import type { Duplex, Readable, Writable } from 'node:stream';

import {
  type DoctorReport,
  doctor,
  ExecError,
  type ExecProcess,
  type ExecResult,
  type FileWatcher,
  type ForkCapacity,
  type ForkTimings,
  GiB,
  MiB,
  type PortForward,
  type ProcessInfo,
  Snapshot,
  type SnapshotProgress,
  type TransferSummary,
  Vm,
  VmError,
  type VmErrorCode,
  type VmExit,
} from '../../lib/index.js';

type Equal<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

function expectType<Expected>() {
  return <Actual>(_value: Actual, _same: Equal<Expected, Actual>): void => {};
}

export async function commands(vm: Vm): Promise<void> {
  expectType<ExecProcess<string>>()(vm.exec('ls'), true);
  expectType<ExecProcess<string>>()(vm.exec(['ls', '-l'], { encoding: 'hex' }), true);
  expectType<ExecProcess<Buffer>>()(vm.exec('ls', { encoding: 'buffer' }), true);
  expectType<ExecResult<string>>()(await vm.exec('ls'), true);
  expectType<string>()((await vm.exec('ls')).stdout, true);
  expectType<Buffer>()((await vm.exec('ls', { encoding: 'buffer' })).stderr, true);
  const handle = vm.exec('cat', { stdin: 'text', stdout: 'inherit', check: true });
  expectType<Writable>()(handle.stdin, true);
  expectType<Readable>()(handle.stdout, true);
  expectType<boolean>()(handle.kill('SIGINT'), true);
  for await (const line of handle.lines()) expectType<string>()(line, true);
  const promise: Promise<ExecResult> = handle;
  await promise;

  const limits = { nofile: 5, cpu: { soft: 1, hard: 'unlimited' } } as const;
  vm.exec('id', { user: 1000, group: 'users', groups: ['wheel', 10], umask: 0o077, limits });
  vm.exec('make', { killTree: true, timeoutMs: 5 });
  const shell = vm.exec('sh', { pty: { columns: 80, rows: 24 } });
  expectType<void>()(shell.resize({ columns: 100, rows: 30 }), true);
  vm.exec('sh', { pty: true });
  // @ts-expect-error both of them
  vm.exec('sh', { pty: { columns: 80 } });
  // @ts-expect-error a resource that does not exist
  vm.exec('ls', { limits: { files: 5 } });
  // @ts-expect-error the arguments belong into one array
  vm.exec('ls', ['-l']);
  // @ts-expect-error an option that does not exist
  vm.exec('ls', { timeout: 5 });
}

export async function connections(vm: Vm): Promise<void> {
  expectType<Duplex>()(await vm.connect(80), true);
  expectType<Duplex>()(await vm.connect(80, { allowHalfOpen: true, highWaterMark: 5 }), true);
  expectType<void>()(await vm.waitForPort(80, { intervalMs: 5, timeoutMs: 5 }), true);
  const forward: PortForward = await vm.forward({ guestPort: 80, hostPort: 8080, host: '::1' });
  expectType<number>()(forward.port, true);
  expectType<PortForward>()(forward.unref(), true);
  const disposable: AsyncDisposable = forward;
  await disposable[Symbol.asyncDispose]();

  // @ts-expect-error forwards are for this host only
  await vm.forward({ guestPort: 80, host: '0.0.0.0' });
  // @ts-expect-error the guest's port is needed
  await vm.forward({ hostPort: 80 });
}

export async function files({ fs }: Vm): Promise<void> {
  expectType<Buffer>()(await fs.readFile('/x'), true);
  expectType<Buffer>()(await fs.readFile('/x', { maxBytes: 5 }), true);
  expectType<string>()(await fs.readFile('/x', 'utf8'), true);
  expectType<string>()(await fs.readFile('/x', { encoding: 'hex' }), true);
  expectType<string[]>()(await fs.readdir('/'), true);
  expectType<Buffer[]>()(await fs.readdir('/', 'buffer'), true);
  expectType<Dirent[]>()(await fs.readdir('/', { withFileTypes: true }), true);
  expectType<Stats>()(await fs.stat('/'), true);
  expectType<TransferSummary>()(await fs.upload('a', '/a', { timeoutMs: 5 }), true);
  expectType<TransferSummary>()(await fs.download('/a', Buffer.from('a'), { maxBytes: 5 }), true);
  expectType<BigIntStats>()(await fs.lstat('/', { bigint: true }), true);
  await fs.writeFile('/x', new Uint8Array(1), { mode: 0o600, flag: 'wx' });
  await fs.writeFile('/x', ['a', 'b']);
  await fs.mkdir('/d', { recursive: true });
  await fs.rm('/d', { recursive: true, force: true });
  await fs.writeFile('/x', '', { atomic: true, signal: AbortSignal.timeout(5) });
  await fs.appendFile('/x', 'a', 'utf8');
  await fs.copyFile('/x', '/y', constants.COPYFILE_EXCL);
  expectType<Readable>()(fs.createReadStream('/x', { start: 1, end: 2 }), true);
  expectType<Writable>()(fs.createWriteStream('/x', { flags: 'r+', start: 5 }), true);
  expectType<string[]>()(await fs.readdir('/', { recursive: true }), true);
  expectType<Buffer[]>()(await fs.readdir('/', { encoding: 'buffer', recursive: true }), true);
  const both = { encoding: 'buffer', withFileTypes: true } as const;
  expectType<Dirent<Buffer>[]>()(await fs.readdir('/', both), true);
  expectType<string>()(await fs.readlink('/x'), true);
  expectType<Buffer>()(await fs.realpath('/x', 'buffer'), true);
  expectType<string>()(await fs.mkdtemp('/tmp/x-', { encoding: 'utf8' }), true);
  await fs.utimes('/x', new Date(), 5);
  for await (const change of fs.watch('/x', { recursive: true })) {
    expectType<FileChangeInfo<string>>()(change, true);
  }
  await using watcher = fs.watch('/x', 'buffer');
  expectType<FileWatcher<Buffer>>()(watcher, true);
  await watcher.ready;

  // @ts-expect-error not contents
  await fs.writeFile('/x', 5);
}

export async function lifecycle(): Promise<void> {
  await using vm = await Vm.create({ memoryBytes: 256 * MiB, vcpus: 2, env: { A: undefined } });
  vm.on('exit', (exit) => expectType<VmExit>()(exit, true));
  vm.on('console', (data) => expectType<Buffer>()(data, true));
  expectType<'running' | 'paused' | 'exited' | 'closed'>()(vm.state, true);
  expectType<string | null>()(vm.parentId, true);
  expectType<DoctorReport>()(await doctor(), true);
  vm.ref().unref();

  // @ts-expect-error the unit is part of the name
  await Vm.create({ memory: GiB });
  // @ts-expect-error a VM comes from Vm.create()
  new Vm();
}

export async function snapshots(vm: Vm): Promise<void> {
  await using snapshot = await vm.snapshot({ at: 'program', label: 'warm', timeoutMs: 5000 });
  expectType<Snapshot>()(snapshot, true);
  expectType<string>()(snapshot.id, true);
  expectType<string | null>()(snapshot.parentId, true);
  expectType<string | undefined>()(snapshot.label, true);
  expectType<number>()(snapshot.memoryBytes, true);
  const fork = await snapshot.fork({ start: 'on-demand', pool: 'require', unique: 'program' });
  expectType<Vm>()(fork, true);
  expectType<Vm[]>()(await vm.forkMany(5, { hostname: 'x', input: new Uint8Array(1) }), true);
  if ('pool' in fork.timings) expectType<ForkTimings>()(fork.timings, true);
  expectType<number>()(fork.timings.totalMs, true);
  expectType<Buffer>()(await fork.parked.call(Buffer.from('x'), { maxBytes: 5 }), true);
  expectType<Promise<Buffer> | undefined>()(fork.parked.first, true);
  expectType<ProcessInfo[]>()(await fork.processes(), true);
  expectType<ExecProcess<string>>()(fork.attach('vm-x/1'), true);
  await fork.pause();
  await fork.resume();
  await fork.reset();
  await fork.reset(snapshot);
  await snapshot.prewarm(3);
  await snapshot.save('/x', { overwrite: true, signal: AbortSignal.timeout(5) });
  expectType<Snapshot>()(await Snapshot.load('/x', { verify: true }), true);
  await Snapshot.ensure({
    key: 'x',
    options: { vcpus: 2 },
    prepare: async (made) => void (await made.exec('true')),
    onProgress: (progress) => expectType<SnapshotProgress>()(progress, true),
  });
  expectType<ForkCapacity>()((await doctor()).maxForks, true);

  // @ts-expect-error there is no such place
  await vm.snapshot({ at: 'home' });
  // @ts-expect-error input is bytes
  await snapshot.fork({ input: 'text' });
  // @ts-expect-error the signal belongs beside the options
  await Snapshot.ensure({ key: 'x', options: { signal: AbortSignal.timeout(5) } });
  // @ts-expect-error a snapshot comes from a VM, a directory or the cache
  new Snapshot();
}

export function errors(error: unknown): string {
  if (error instanceof ExecError) return String(error.stdout);
  if (error instanceof VmError) {
    expectType<VmErrorCode>()(error.code, true);
    // @ts-expect-error the list is closed
    if (error.code === 'ERR_VM_NO_SUCH_CODE') return '';
    return error.detail ?? '';
  }
  return '';
}
