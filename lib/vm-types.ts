// What a VM says of itself.

import type { ExecCommand } from './exec.js';
import type { NativeExitReason } from './native.js';
// For links in comments only.
import type { Vm } from './vm.js';

/** Why and how a VM stopped running. */
export interface VmExit {
  /**
   * - `'power-off'`, `'halt'`: the guest stopped itself.
   * - `'restart'`: the guest asked for a restart; a VM does not restart.
   * - `'panic'`, `'triple-fault'`: the guest's kernel failed. One that is not ours ends with the
   *   latter when it restarts as well.
   * - `'internal-error'`: KVM could not go on; `detail` has the instruction.
   * - `'host-error'`: the host failed under the VM.
   * - `'io-error'`: the file behind its memory was truncated or cannot be read.
   * - `'not-unique'`: a fork could not confirm that it is unique, and was stopped.
   * - `'closed'`: `vm.close()`.
   */
  readonly reason: NativeExitReason | 'not-unique' | 'closed';
  /** A sentence for people; may be empty. */
  readonly detail: string;
  /** The end of the serial console, as {@link Vm.console} has it: the guest's own bytes. */
  readonly console: string;
}

/** Milliseconds of each stage of a boot, in order. */
export interface BootTimings {
  /** Options checked, files found, root packed. */
  readonly prepareMs: number;
  /** VM, interrupt controller and memory created. */
  readonly createMs: number;
  /** Kernel and root loaded into guest memory. */
  readonly loadMs: number;
  /** vCPUs, devices and their threads started. */
  readonly startMs: number;
  /** From the first guest instruction to the agent's first message. */
  readonly guestMs: number;
  /** Agent configured. */
  readonly configureMs: number;
  /** From the call of `Vm.create()` to the VM. */
  readonly totalMs: number;
}

/** Milliseconds of each stage of a fork, in order. */
export interface ForkTimings {
  /** What it was made from: a fork that waited, an empty VM that waited, or nothing. */
  readonly pool: 'fork' | 'shell' | 'none';
  /** Options checked; of `vm.fork()` also the snapshot taken. */
  readonly prepareMs: number;
  /** An empty VM created or taken. */
  readonly createMs: number;
  /** Memory mapped, processors and devices restored. */
  readonly restoreMs: number;
  /** From the call of `fork()` to the VM. */
  readonly totalMs: number;
}

/** Milliseconds of each stage of a VM's boot or fork. */
export type VmTimings = BootTimings | ForkTimings;

/** A command that was started by `vm.exec()` and runs. */
export interface ProcessInfo {
  /** Names it in this VM and in its forks, for {@link Vm.attach}. */
  readonly id: string;
  /** Its process id in the guest. */
  readonly pid: number;
  /** The command as it was given; long ones are shortened to 1024 characters and 64 arguments. */
  readonly command: ExecCommand;
  /** When it was started, by the host's clock; in a fork, when its parent started it. */
  readonly startedAt: Date;
}

/** Events of a {@link Vm}, with the arguments of their listeners. */
export interface VmEvents {
  /** Once, when the VM has stopped running, for whatever reason. */
  exit: [exit: VmExit];
  /** The guest wrote to its serial console. */
  console: [data: Buffer];
}
