// The addon's side of lib/native.ts without KVM: VMs whose guest is a few lines of the agent's
// protocol. What the library does around a freeze, a fork or a reset, in which order, and what it
// leaves behind, is tested against it; what the core does, is not.
//
// Use: vi.mock('../../lib/native.js', async (original) => mockNative(await original()));

import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { encodeFrame, FrameType, PROTOCOL_VERSION } from '../../lib/internal/protocol/protocol.js';
import type {
  NativeAddon,
  NativeCore,
  NativeError,
  NativeEvent,
  NativeForkTimes,
  NativeParkPlace,
  NativeSnapshotInfo,
} from '../../lib/native.js';
import { CONNECTION, type FakeHost, type FakeShape, FakeVm, type GuestState } from './fake-vm.js';

interface FakeSnapshot {
  readonly at: NativeParkPlace;
  readonly guest: GuestState;
  readonly memoryBytes: number;
  readonly vcpus: number;
}

export class FakeNative implements NativeCore, FakeHost {
  readonly vms = new Map<number, FakeVm>();
  readonly snapshots = new Map<number, FakeSnapshot>();
  /** Names of calls, in order. */
  readonly log: string[] = [];
  readonly prewarmed = new Map<number, number>();
  /** Requests of this kind fail with that error. */
  readonly failing = new Map<string, NativeError>();
  /** Requests of this kind are never answered, unless they are cancelled. */
  readonly hanging = new Set<string>();
  /** Whether forks are there at once. */
  pooled = false;
  silentRenewal = false;
  /** A program answers calls, and is there to be frozen. */
  program: ((input: Buffer) => Buffer) | undefined;
  referenced = false;
  readonly #hung = new Set<number>();
  readonly #failNth = new Map<string, { left: number; readonly error: NativeError }>();
  #generation = 0x1000n;
  #queue: NativeEvent[] = [];
  readonly #deliver: (events: readonly NativeEvent[]) => void;

  constructor(deliver: (events: readonly NativeEvent[]) => void) {
    this.#deliver = deliver;
  }

  /** The VM that was made last. */
  get lastVm(): FakeVm {
    const vm = [...this.vms.values()].at(-1);
    if (vm === undefined) throw new Error('There is no VM');
    return vm;
  }

  nextGeneration(): bigint {
    return ++this.#generation;
  }

  /** Events leave in batches, as the addon's do. */
  emit(event: NativeEvent): void {
    this.#queue.push(event);
    if (this.#queue.length > 1) return;
    setImmediate(() => this.#deliver(this.#queue.splice(0)));
  }

  /** The guest stands parked. */
  freeze(vm: FakeVm, at: NativeParkPlace): void {
    const pending = vm.pending;
    if (pending?.at !== at || this.hanging.has('snapshotVm')) return;
    vm.pending = undefined;
    this.snapshots.set(pending.snapshot, { at, guest: copy(vm.guest), ...shapeOf(vm) });
    this.emit({ type: 'done', request: pending.request, value: infoOf(vm) });
  }

  exit(vm: FakeVm, reason: 'panic' | 'power-off'): void {
    this.emit({ type: 'exit', vm: vm.number, reason, detail: 'of its own' });
  }

  /** The n-th request of this kind from now on fails. */
  failNth(kind: string, n: number, error: NativeError): void {
    this.#failNth.set(kind, { left: n, error });
  }

  /** Requests that hung are answered after all, as every one is in the end. */
  answerHung(): void {
    this.hanging.clear();
    for (const request of this.#hung) this.emit({ type: 'done', request, value: undefined });
    this.#hung.clear();
  }

  #settle(kind: string, request: number, value?: () => unknown): void {
    this.log.push(kind);
    const nth = this.#failNth.get(kind);
    const error = nth !== undefined && --nth.left === 0 ? nth.error : this.failing.get(kind);
    if (this.hanging.has(kind)) this.#hung.add(request);
    else if (error !== undefined) this.emit({ type: 'failed', request, error });
    else this.emit({ type: 'done', request, value: value?.() });
  }

  #cancelled(request: number): void {
    const error = { code: 'ERR_VM_CANCELLED', message: 'cancelled', errno: 0, syscall: '' };
    this.emit({ type: 'failed', request, error });
  }

  createVm(request: number, number: number, config: Parameters<NativeCore['createVm']>[2]): void {
    const guest = { commands: new Set<number>(), generation: 0n };
    const vm = new FakeVm(this, number, guest, { ...config, entered: true });
    this.vms.set(number, vm);
    this.#settle('createVm', request, () => ({
      started: 1,
      vmCreated: 2,
      kernelLoaded: 3,
      entered: 4,
    }));
    this.emit({ type: 'connection-opened', vm: number, connection: CONNECTION, port: 1 });
    vm.say(encodeFrame({ type: FrameType.hello, value: PROTOCOL_VERSION }));
  }

  closeVm(request: number, vm: number): void {
    for (const call of this.vms.get(vm)?.calls.keys() ?? []) this.#cancelled(call);
    this.vms.delete(vm);
    this.#settle('closeVm', request);
  }

  send(number: number, connection: number, data: Uint8Array): void {
    const vm = this.vms.get(number);
    if (vm === undefined || connection !== CONNECTION) return;
    vm.entered = true;
    this.emit({ type: 'connection-sent', vm: number, connection, bytes: data.length });
    vm.receive(data);
  }

  consume(): void {}

  disconnect(): void {
    this.log.push('disconnect');
  }

  stats(request: number): void {
    this.#settle('stats', request, () => ({ vcpuCpuTimeNs: [] }));
  }

  snapshotVm(
    request: number,
    number: number,
    snapshot: number,
    at: NativeParkPlace,
    timeoutMs: number,
  ): void {
    this.log.push('snapshotVm');
    const vm = this.vms.get(number);
    const error = this.failing.get('snapshotVm');
    if (error !== undefined || vm === undefined) {
      const gone = { code: 'ERR_VM_CLOSED', message: 'gone', errno: 0, syscall: '' };
      this.emit({ type: 'failed', request, error: error ?? gone });
      return;
    }
    const pending = { request, snapshot, at };
    vm.pending = pending;
    setTimeout(() => {
      if (vm.pending !== pending) return;
      vm.pending = undefined;
      const late = { code: 'ERR_VM_PARK_TIMEOUT', message: 'late', errno: 0, syscall: '' };
      this.emit({ type: 'failed', request, error: late });
    }, timeoutMs).unref();
    if (at === 'program' && this.program !== undefined) this.freeze(vm, 'program');
  }

  cancelSnapshot(number: number): void {
    this.log.push('cancelSnapshot');
    const vm = this.vms.get(number);
    if (vm?.pending === undefined) return;
    this.#cancelled(vm.pending.request);
    vm.pending = undefined;
  }

  forkSnapshot(request: number, snapshot: number, number: number): NativeForkTimes | undefined {
    const frozen = this.snapshots.get(snapshot);
    if (frozen === undefined) throw new Error('A snapshot that is not there was forked');
    const { guest, at } = frozen;
    const vm = new FakeVm(this, number, copy(guest), { ...frozen, entered: false });
    vm.at = at;
    this.vms.set(number, vm);
    const times = { pool: this.pooled ? 'fork' : 'none', shell: 1e6, restored: 3e6 } as const;
    if (this.pooled) return times;
    this.#settle('forkSnapshot', request, () => times);
    return undefined;
  }

  enterVm(number: number): void {
    this.log.push('enterVm');
    const vm = this.vms.get(number);
    if (vm === undefined || vm.entered) return;
    vm.entered = true;
    vm.renewed();
  }

  prewarmSnapshot(request: number, snapshot: number, count: number): void {
    this.prewarmed.set(snapshot, count);
    this.#settle('prewarmSnapshot', request);
  }

  closeSnapshot(request: number, snapshot: number): void {
    this.snapshots.delete(snapshot);
    this.#settle('closeSnapshot', request);
  }

  pauseVm(request: number, vm: number): void {
    const fake = this.vms.get(vm);
    if (fake !== undefined) fake.paused = true;
    this.#settle('pauseVm', request);
  }

  resumeVm(request: number, vm: number): void {
    const fake = this.vms.get(vm);
    if (fake !== undefined) fake.paused = false;
    this.#settle('resumeVm', request);
  }

  resetVm(request: number, number: number, snapshot: number): void {
    const vm = this.vms.get(number);
    const frozen = this.snapshots.get(snapshot);
    if (vm === undefined || frozen === undefined) throw new Error('Reset of what is not there');
    vm.become(copy(frozen.guest));
    vm.at = frozen.at;
    vm.entered = false;
    vm.paused = false;
    this.#settle('resetVm', request);
  }

  callProgram(request: number, number: number, input: Uint8Array): void {
    this.log.push('callProgram');
    const vm = this.vms.get(number);
    if (vm === undefined) throw new Error('A call of a VM that is not there');
    if (this.program === undefined) {
      vm.calls.set(request, Buffer.from(input));
      return;
    }
    vm.entered = true;
    this.emit({ type: 'done', request, value: this.program(Buffer.from(input)) });
  }

  cancelCall(request: number, number: number): void {
    this.log.push('cancelCall');
    if (this.vms.get(number)?.calls.delete(request) === true) this.#cancelled(request);
  }

  yieldProgram(): void {}

  saveSnapshot(
    request: number,
    snapshot: number,
    directory: string,
    overwrite: boolean,
    session: Uint8Array,
  ): void {
    if (existsSync(directory) && !overwrite) {
      const error = { code: 'ERR_VM_EXISTS', message: 'there', errno: 17, syscall: 'rename' };
      this.log.push('saveSnapshot');
      this.emit({ type: 'failed', request, error });
      return;
    }
    this.#settle('saveSnapshot', request, () => {
      rmSync(directory, { recursive: true, force: true });
      mkdirSync(directory);
      const { at, memoryBytes, vcpus } = this.snapshots.get(snapshot) as FakeSnapshot;
      writeFileSync(path.join(directory, 'machine'), JSON.stringify({ at, memoryBytes, vcpus }));
      writeFileSync(path.join(directory, 'session'), session);
    });
  }

  loadSnapshot(request: number, snapshot: number, _kvm: string, directory: string): void {
    if (!existsSync(path.join(directory, 'session'))) {
      const error = { code: 'ERR_VM_BAD_SNAPSHOT', message: 'none', errno: 2, syscall: 'open' };
      this.log.push('loadSnapshot');
      this.emit({ type: 'failed', request, error });
      return;
    }
    this.#settle('loadSnapshot', request, () => {
      const machine = JSON.parse(readFileSync(path.join(directory, 'machine'), 'utf8'));
      const guest = { commands: new Set<number>(), generation: 0n };
      const frozen = { ...(machine as FakeSnapshot), guest };
      this.snapshots.set(snapshot, frozen);
      const session = readFileSync(path.join(directory, 'session'));
      return { ...infoOf(frozen), at: frozen.at, session };
    });
  }

  cancelRequest(request: number): void {
    this.log.push('cancelRequest');
    if (this.#hung.delete(request)) this.#cancelled(request);
  }

  probe(request: number): void {
    this.#settle('probe', request, () => ({ backend: 'none', quirks: [], checks: [] }));
  }

  ref(): void {
    this.referenced = true;
  }

  unref(): void {
    this.referenced = false;
  }
}

function shapeOf({ memoryBytes, vcpus }: Omit<FakeShape, 'entered'>): Omit<FakeShape, 'entered'> {
  return { memoryBytes, vcpus };
}

function infoOf(vm: Omit<FakeShape, 'entered'>): NativeSnapshotInfo {
  return { ...shapeOf(vm), connection: CONNECTION, copiedPages: 0, parkNs: 1, stoppedNs: 1 };
}

function copy({ commands, generation }: GuestState): GuestState {
  return { commands: new Set(commands), generation };
}

let current: FakeNative | undefined;

/** The core of this test file; it exists once the library has asked for it. */
export function fakeNative(): FakeNative {
  if (current === undefined) throw new Error('The library has not created its core yet');
  return current;
}

/** lib/native.ts with this addon. */
export function mockNative(original: object): object {
  const addon: NativeAddon = {
    createCore: (deliver) => {
      current = new FakeNative(deliver);
      return current;
    },
  };
  return { ...original, loadAddon: () => addon };
}
