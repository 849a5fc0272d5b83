/**
 * The typed boundary to the C++ addon, and its only importer.
 *
 * The addon's core exchanges plain messages: each method of {@link NativeCore} posts one request
 * and returns at once; everything that comes back is a {@link NativeEvent}, delivered in batches
 * and in order. Nothing here throws for a reason that depends on a VM: wrong argument types are
 * the only exceptions, since `options.ts` has checked everything a caller can get wrong.
 *
 * Buffers are copied on the way in and on the way out; guest memory is never visible here.
 */

import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

import { VmError } from './errors.js';

/** What went wrong in the core. `errors.ts` turns it into a `VmError`. */
export interface NativeError {
  /** One of the `ERR_VM_*` codes that the core can raise. */
  readonly code: string;
  /** Sentence that names the value and the remedy where one is known. */
  readonly message: string;
  /** Positive errno of the host, or 0. */
  readonly errno: number;
  /** The system call or KVM request that failed, or ''. */
  readonly syscall: string;
}

/** Everything that the core needs to boot a VM; complete and validated. */
export interface NativeVmConfig {
  readonly memoryBytes: number;
  readonly vcpus: number;
  /** `/dev/kvm`, or what `FORKLET_KVM` names. */
  readonly kvmPath: string;
  readonly kernelPath: string;
  /** Appended to the command line that the core composes. */
  readonly kernelArgs: string;
  /** Concatenated into one initramfs; each segment a multiple of 4 bytes long. */
  readonly initramfs: readonly Uint8Array[];
}

/** Monotonic host times of the boot's stages, in nanoseconds since the request was posted. */
export interface NativeBootTimes {
  /** The boot thread runs. */
  readonly started: number;
  /** VM, irqchip and memory exist. */
  readonly vmCreated: number;
  /** Kernel and initramfs are in guest memory. */
  readonly kernelLoaded: number;
  /** vCPUs, devices and their threads exist; the first vCPU enters the guest. */
  readonly entered: number;
}

/** Why a VM stopped running. */
export type NativeExitReason =
  /** The guest powered itself off. */
  | 'power-off'
  /** The guest asked for a restart; a VM does not restart. */
  | 'restart'
  /** The guest's kernel panicked. */
  | 'panic'
  /** A vCPU triple-faulted. */
  | 'triple-fault'
  /** KVM could not go on: `detail` has the suberror, the instruction, RIP and CPL. */
  | 'internal-error'
  /** All vCPUs halted with interrupts off: nothing can wake them. */
  | 'halt'
  /** A device or the host failed under the VM; `detail` says how. */
  | 'host-error'
  /** The file behind its memory was truncated or cannot be read. */
  | 'io-error';

export type NativeEvent =
  | { readonly type: 'done'; readonly request: number; readonly value: unknown }
  | { readonly type: 'failed'; readonly request: number; readonly error: NativeError }
  | { readonly type: 'console'; readonly vm: number; readonly data: Uint8Array }
  | {
      readonly type: 'exit';
      readonly vm: number;
      readonly reason: NativeExitReason;
      readonly detail: string;
    }
  /** The agent dialled the control port, or `connect` was answered. */
  | {
      readonly type: 'connection-opened';
      readonly vm: number;
      readonly connection: number;
      readonly port: number;
    }
  | {
      readonly type: 'connection-data';
      readonly vm: number;
      readonly connection: number;
      readonly data: Uint8Array;
    }
  /** That many bytes of earlier `send` calls have reached the guest's queue. */
  | {
      readonly type: 'connection-sent';
      readonly vm: number;
      readonly connection: number;
      readonly bytes: number;
    }
  /** Both directions are over; the id is free again. */
  | { readonly type: 'connection-closed'; readonly vm: number; readonly connection: number };

/** Figures of one VM; all counters start at 0 when the VM is created. */
export interface NativeVmStats {
  /** Guest memory that the host has allocated (memfd `st_blocks`), in bytes. */
  readonly memoryAllocatedBytes: number;
  /** CPU time of the vCPU threads (`CLOCK_THREAD_CPUTIME_ID` of each), in nanoseconds. */
  readonly vcpuCpuTimeNs: readonly number[];
  /** VM exits by reason, counted in the run loop. */
  readonly exits: Readonly<Record<string, number>>;
  /** Instructions that KVM's emulator refused and the core completed. */
  readonly completedInstructions: number;
  /** Bytes that the guest wrote to the serial console. */
  readonly consoleBytes: number;
  /** Payload bytes over vsock. */
  readonly vsockBytesToGuest: number;
  readonly vsockBytesFromGuest: number;
  /** The KVM statistics of the VM and of all its vCPUs, summed (KVM_GET_STATS_FD); empty when the host lacks it. */
  readonly kvm: Readonly<Record<string, number>>;
}

/** One line of `doctor()`, as found by the core. */
export interface NativeCheck {
  readonly name: string;
  readonly ok: boolean;
  readonly found: string;
  readonly needed: string;
  /** '' when nothing needs to be done. */
  readonly remedy: string;
}

export interface NativeProbe {
  /** `vmx`, `svm`, `pvm` or `none`: which KVM module serves this host, as far as can be told. */
  readonly backend: string;
  /** Names of the quirks that the core works around on this host. */
  readonly quirks: readonly string[];
  readonly checks: readonly NativeCheck[];
}

/** Where a VM stands still to be frozen. */
export type NativeParkPlace =
  /** The agent, after it was sent `FK_PARK`. */
  | 'agent'
  /** A guest program that called `forklet_park()`. */
  | 'program';

/** A frozen VM in memory. */
export interface NativeSnapshotInfo {
  readonly memoryBytes: number;
  readonly vcpus: number;
  /** The control connection in this VM and in every fork; 0 when there is none. */
  readonly connection: number;
  /** Guest pages that were copied to freeze the VM; 0 for one that was booted. */
  readonly copiedPages: number;
  /** Nanoseconds from the request until the VM stood parked. */
  readonly parkNs: number;
  /** Nanoseconds for which the VM then stood still. */
  readonly stoppedNs: number;
}

/** A snapshot that was loaded from a directory. */
export interface NativeLoadedSnapshot extends NativeSnapshotInfo {
  /** Where it was frozen. */
  readonly at: NativeParkPlace;
  /** What `saveSnapshot` was given. */
  readonly session: Uint8Array;
}

/** What a fork may take of what was made ahead of need. */
export type NativePoolUse = 'use' | 'never' | 'require';

/** Times of one fork, in nanoseconds since the request was posted. */
export interface NativeForkTimes {
  /** What it was made from: a restored VM that waited, an empty one, or nothing. */
  readonly pool: 'fork' | 'shell' | 'none';
  /** An empty VM exists: memslots, irqchip, vCPUs. */
  readonly shell: number;
  /** Memory is mapped, and CPU and device state is restored. */
  readonly restored: number;
}

/** One per environment. Idle cores hold no thread and no descriptor. */
export interface NativeCore {
  /** Builds a VM and enters it. `done` with {@link NativeBootTimes}; `failed` leaves nothing behind. */
  createVm(request: number, vm: number, config: NativeVmConfig): void;
  /** Stops and releases a VM in any state, mid-boot included. `done` after release; no event of this VM follows. */
  closeVm(request: number, vm: number): void;
  /** Queues bytes for the guest. The core holds them until the guest has room: `connection-sent` says when. */
  send(vm: number, connection: number, data: Uint8Array): void;
  /** The host has consumed bytes of `connection-data`: the guest may send as many more. */
  consume(vm: number, connection: number, bytes: number): void;
  /** Resets a connection. */
  disconnect(vm: number, connection: number): void;
  /** `done` with {@link NativeVmStats}. */
  stats(request: number, vm: number): void;
  /**
   * Freezes a VM as soon as it stands parked at `at`, and lets it go on. `done` with
   * {@link NativeSnapshotInfo}; `failed` with `ERR_VM_PARK_TIMEOUT` leaves the VM as it was. The
   * caller has the agent park, and sends nothing to the guest meanwhile.
   */
  snapshotVm(
    request: number,
    vm: number,
    snapshot: number,
    at: NativeParkPlace,
    timeoutMs: number,
  ): void;
  /** Gives up a pending `snapshotVm`, which then fails with `ERR_VM_CANCELLED`, unless it is done first. */
  cancelSnapshot(vm: number): void;
  /**
   * Makes a VM from a snapshot, restored and not entered. Returns its times at once when a prewarmed
   * fork was there; otherwise `undefined`, and `done` with {@link NativeForkTimes} or `failed` follows.
   */
  forkSnapshot(
    request: number,
    snapshot: number,
    vm: number,
    pool: NativePoolUse,
    hostname: string,
  ): NativeForkTimes | undefined;
  /** Lets the vCPUs of a fork enter the guest; nothing when they have. */
  enterVm(vm: number): void;
  /** Keeps so many forks of a snapshot restored ahead of need; `done` once they are there. */
  prewarmSnapshot(request: number, snapshot: number, count: number): void;
  /** Releases a snapshot and what was prewarmed from it; its forks live on. */
  closeSnapshot(request: number, snapshot: number): void;
  /** Stops all vCPUs; `done` when they stand still. */
  pauseVm(request: number, vm: number): void;
  resumeVm(request: number, vm: number): void;
  /** Puts a VM back to a snapshot of the same size, in place; restored and not entered, like a fork. */
  resetVm(request: number, vm: number, snapshot: number): void;
  /**
   * Hands `input` to the program at its park; `done` with its answer (a Buffer) when it parks again.
   * Waits for a program that is not parked yet. `failed`: `ERR_VM_PROGRAM` when it says that the
   * request failed (the message is its own), when it ended, or when its answer has more than `maxBytes`.
   */
  callProgram(request: number, vm: number, input: Uint8Array, maxBytes: number): void;
  /** Gives up a pending `callProgram`: it fails with `ERR_VM_CANCELLED`, and a late answer is dropped. */
  cancelCall(request: number, vm: number): void;
  /** Whether the rest of the guest must go on while a program stands parked, as it does for work of the agent. */
  yieldProgram(vm: number): void;
  /** Writes a snapshot to a directory. `failed` leaves what was there before. */
  saveSnapshot(
    request: number,
    snapshot: number,
    directory: string,
    overwrite: boolean,
    session: Uint8Array,
  ): void;
  /** `done` with {@link NativeLoadedSnapshot}. With `verify` every byte is checked first. */
  loadSnapshot(
    request: number,
    snapshot: number,
    kvmPath: string,
    directory: string,
    verify: boolean,
  ): void;
  /** Ends a `saveSnapshot` or `loadSnapshot` early: it fails with `ERR_VM_CANCELLED`. */
  cancelRequest(request: number): void;
  /** `done` with {@link NativeProbe}; runs a one-instruction guest. */
  probe(request: number, kvmPath: string): void;
  /** Whether undelivered events or running VMs keep Node's event loop alive. */
  ref(): void;
  unref(): void;
}

export interface NativeAddon {
  /** Creates the environment's core; `onEvents` is called on the JS thread. */
  createCore(onEvents: (events: readonly NativeEvent[]) => void): NativeCore;
}

/** What this platform lacks to run VMs at all, or `undefined`. */
export function unsupportedPlatform(): string | undefined {
  return process.platform === 'linux' && process.arch === 'x64'
    ? undefined
    : `forklet runs VMs on Linux on x86-64 only; this is ${process.platform} on ${process.arch}`;
}

let loaded: NativeAddon | undefined;

/**
 * Loads the addon at first use, never at import: the package can be imported on any platform.
 *
 * @throws {VmError} `ERR_VM_KVM_UNAVAILABLE`: another platform, or no addon for this one.
 */
export function loadAddon(): NativeAddon {
  if (loaded !== undefined) return loaded;
  const unsupported = unsupportedPlatform();
  if (unsupported !== undefined) {
    throw new VmError({ code: 'ERR_VM_KVM_UNAVAILABLE', message: unsupported });
  }
  const packageRoot = fileURLToPath(new URL('..', import.meta.url));
  try {
    const find = createRequire(import.meta.url)('node-gyp-build') as (root: string) => NativeAddon;
    loaded = find(packageRoot);
  } catch (cause) {
    throw new VmError({
      code: 'ERR_VM_KVM_UNAVAILABLE',
      message:
        `The native addon cannot be loaded from ${packageRoot}: ${(cause as Error).message}. ` +
        'In a checkout, build it with `npm run setup`; an installed package carries it for ' +
        'Linux on x86-64 with glibc.',
      cause,
    });
  }
  return loaded;
}
