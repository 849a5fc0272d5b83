// Checked by the compiler alone (`npm run typecheck`): what callers may write, and what they get.

import type { BigIntStats, Dirent, Stats } from 'node:fs';
import type { Readable, Writable } from 'node:stream';

import {
  type DoctorReport,
  doctor,
  ExecError,
  type ExecProcess,
  type ExecResult,
  GiB,
  MiB,
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

  // @ts-expect-error the arguments belong into one array
  vm.exec('ls', ['-l']);
  // @ts-expect-error an option that does not exist
  vm.exec('ls', { timeout: 5 });
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
  expectType<BigIntStats>()(await fs.lstat('/', { bigint: true }), true);
  await fs.writeFile('/x', new Uint8Array(1), { mode: 0o600, flag: 'wx' });
  await fs.writeFile('/x', ['a', 'b']);
  await fs.mkdir('/d', { recursive: true });
  await fs.rm('/d', { recursive: true, force: true });

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
