import { randomBytes } from 'node:crypto';
import { EventEmitter } from 'node:events';

import { type ExecCommand, type ExecOptions, ExecProcess } from './exec.js';
import { GuestFs } from './guest-fs.js';
import { kvmPath } from './internal/artifacts.js';
import { Core } from './internal/core.js';
import { observe } from './internal/diagnostics.js';
import { checkExec } from './internal/exec-options.js';
import type { Guest } from './internal/guest.js';
import { prepareBoot } from './internal/prepare-boot.js';
import { type SessionObserver, VmSession } from './internal/vm-session.js';
import { toVmStats, type VmStats } from './internal/vm-stats.js';
import type { NativeExitReason } from './native.js';
import { checkVmOptions, DEFAULT_ENVIRONMENT, type VmOptions } from './options.js';

export type { VmStats } from './internal/vm-stats.js';

/** Why and how a VM stopped running. */
export interface VmExit {
  /**
   * - `'power-off'`, `'halt'`: the guest stopped itself.
   * - `'restart'`: the guest asked for a restart; a VM does not restart.
   * - `'panic'`, `'triple-fault'`: the guest's kernel failed. One that is not ours ends with the
   *   latter when it restarts as well.
   * - `'internal-error'`: KVM could not go on; `detail` has the instruction.
   * - `'host-error'`: the host failed under the VM.
   * - `'closed'`: `vm.close()`.
   */
  readonly reason: NativeExitReason | 'closed';
  /** A sentence for people; may be empty. */
  readonly detail: string;
  /** The end of the serial console, as {@link Vm.console} has it: the guest's own bytes. */
  readonly console: string;
}

/** Milliseconds of each stage of a boot, in order. */
export interface VmTimings {
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

/** Events of a {@link Vm}, with the arguments of their listeners. */
export interface VmEvents {
  /** Once, when the VM has stopped running, for whatever reason. */
  exit: [exit: VmExit];
  /** The guest wrote to its serial console. */
  console: [data: Buffer];
}

/** Closes VMs whose handles were collected, and says so. */
const abandoned = new FinalizationRegistry<{ session: VmSession; id: string }>(
  ({ session, id }) => {
    if (session.state === 'closed') return;
    process.emitWarning(
      `VM ${id} was garbage-collected without close(), and has been closed. ` +
        'Close VMs that you are done with: a collected one holds its memory until then.',
      { type: 'ForkletWarning', code: 'FORKLET_VM_NOT_CLOSED' },
    );
    session.close().catch((error: unknown) => {
      process.emitWarning(error as Error);
    });
  },
);

/**
 * A Linux virtual machine inside this process.
 *
 * It starts empty: no network but `lo`, no file of the host, no environment but the stated one.
 * Release it with {@link close} or `await using`. It does not keep the event loop alive by itself,
 * but operations under way do; see {@link ref}.
 */
export class Vm extends EventEmitter<VmEvents> implements AsyncDisposable {
  /** Names the VM in errors and diagnostics; unique. */
  readonly id: string;
  /** The VM or snapshot that this one came from; `null` for one that was booted. */
  readonly parentId: string | null = null;
  /** How long each stage of the boot took. */
  readonly timings: VmTimings;
  /** Files of the guest. */
  readonly fs: GuestFs;
  readonly #session: VmSession;
  readonly #guest: Guest;
  /** Held here alone, since the session holds it weakly. */
  readonly #observer: SessionObserver;
  #closed: Promise<void> | undefined;

  private constructor(id: string, session: VmSession, env: Guest['env'], timings: VmTimings) {
    super();
    this.id = id;
    this.#session = session;
    this.timings = timings;
    this.#guest = { id, parentId: this.parentId, agent: session.agent, env, owner: this };
    this.fs = new GuestFs(this.#guest);
    this.#observer = {
      onConsole: (data) => this.#emit('console', Buffer.from(data)),
      onExit: (exit) => this.#emit('exit', exit),
    };
    session.observe(this.#observer);
    abandoned.register(this, { session, id }, this);
  }

  /**
   * Boots a VM and resolves when its agent answers.
   *
   * On failure no thread, mapping or descriptor of the VM remains.
   *
   * @returns a running VM, owned by the caller.
   * @throws {TypeError} unknown option, or one of a wrong type.
   * @throws {RangeError} `memoryBytes`, `vcpus`, `bootTimeoutMs` or `kernelArgs` out of range.
   * @throws {VmError} `ERR_VM_KVM_UNAVAILABLE`: this host cannot run VMs, see `doctor()`.
   *   `ERR_VM_BAD_KERNEL` (and its modules), `ERR_VM_BAD_ROOT`: the file, and what is wrong with it.
   *   `ERR_VM_NO_MEMORY`: the host refused memory, or the guest's is too small.
   *   `ERR_VM_BOOT_TIMEOUT`, `ERR_VM_EXITED`: the guest's fault, its console's end in `detail`.
   *   `ERR_VM_AGENT_PROTOCOL`: agent of another version. `ERR_VM_KVM`, `ERR_VM_SYSTEM`: see
   *   `syscall` and `errno`.
   * @throws {AbortError} `signal` was aborted.
   */
  static async create(options?: VmOptions): Promise<Vm> {
    const startedAt = performance.now();
    const checked = checkVmOptions(options);
    const { bootTimeoutMs, hostname, signal, memoryBytes, vcpus } = checked;
    const id = `vm-${randomBytes(8).toString('hex')}`;
    const observation = observe('create', { id, parentId: null }, 'create', () => {
      const { kernel, modules, root, kernelArgs, env } = checked;
      const names = Object.keys(env);
      return {
        memoryBytes,
        vcpus,
        kernel,
        modules,
        kernelArgs,
        root,
        env: names,
        hostname,
        bootTimeoutMs,
      };
    });
    try {
      const core = Core.get();
      const { kernelPath, initramfs } = await prepareBoot(checked);
      const session = new VmSession(core, { id, parentId: null });
      const timings = await session.boot({
        config: {
          memoryBytes,
          vcpus,
          kvmPath: kvmPath(),
          kernelPath,
          kernelArgs: checked.kernelArgs,
          initramfs,
        },
        hostname,
        bootTimeoutMs,
        signal,
        startedAt,
      });
      const vm = new Vm(id, session, { ...DEFAULT_ENVIRONMENT, ...checked.env }, timings);
      observation.succeed({ ...timings });
      return vm;
    } catch (error) {
      observation.fail(error);
      throw error;
    }
  }

  /** `'exited'` means that the guest stopped; what it held is released by {@link close}. */
  get state(): 'running' | 'exited' | 'closed' {
    return this.#session.state;
  }

  /** Resolves when the agent has answered, which for a booted VM it has. */
  get ready(): Promise<void> {
    return Promise.resolve();
  }

  /** Resolves when the VM has stopped running, for whatever reason; never rejects. */
  get exited(): Promise<VmExit> {
    return this.#session.exited;
  }

  /**
   * Runs a command: a string goes to `/bin/sh -c`, an array is a program, looked up in `PATH`, and
   * its arguments.
   *
   * The handle is the promise of the result and gives access to the streams meanwhile. The command
   * starts in this tick, whether or not the handle is awaited.
   *
   * @throws {TypeError} at once: unknown option, or an argument of a wrong type.
   * @throws {RangeError} at once: `timeoutMs` or `maxOutputBytes` out of range.
   * @throws {ExecError} by the handle. `ERR_VM_EXEC`: not found, not executable, bad `cwd`, or too
   *   many arguments, with the guest's `errno`. `ERR_VM_TIMEOUT`, `ERR_VM_MAX_OUTPUT`: after the
   *   process group is dead. `ERR_VM_EXIT_STATUS`: with `check`. `ERR_VM_EXITED`, `ERR_VM_CLOSED`,
   *   `ERR_VM_AGENT_UNRESPONSIVE`, `ERR_VM_AGENT_PROTOCOL`: of the VM.
   * @throws {AbortError} by the handle: `signal` was aborted, after the process group is dead.
   */
  exec(command: ExecCommand, options: ExecOptions & { encoding: 'buffer' }): ExecProcess<Buffer>;
  exec(
    command: ExecCommand,
    options?: ExecOptions & { encoding?: BufferEncoding },
  ): ExecProcess<string>;
  exec(command: ExecCommand, options?: ExecOptions): ExecProcess<string> | ExecProcess<Buffer>;
  exec(command: ExecCommand, options?: ExecOptions): ExecProcess<string> | ExecProcess<Buffer> {
    const checked = checkExec(command, options, this.#guest.env);
    return new ExecProcess<string>(this.#guest, checked);
  }

  /**
   * The last 64 KiB that the guest wrote to its serial console, as it wrote them: escape control
   * characters before you show them on a terminal.
   */
  console(): string {
    return this.#session.console();
  }

  /**
   * Figures of this VM, also after it exited.
   *
   * @throws {VmError} `ERR_VM_CLOSED`.
   */
  async stats(): Promise<VmStats> {
    const observation = observe('stats', this, 'stats', () => ({}));
    try {
      const stats = toVmStats(await this.#session.stats());
      observation.succeed();
      return stats;
    } catch (error) {
      observation.fail(error);
      throw error;
    }
  }

  /**
   * Stops the VM at once and releases everything it holds; resolves when that is done. Pending
   * operations reject with `ERR_VM_CLOSED`. May be called in any state and more than once.
   */
  close(): Promise<void> {
    if (this.#closed === undefined) {
      abandoned.unregister(this);
      this.#closed = this.#close();
    }
    return this.#closed;
  }

  async #close(): Promise<void> {
    const observation = observe('close', this, 'close', () => ({}));
    try {
      await this.#session.close();
      observation.succeed();
    } catch (error) {
      observation.fail(error);
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Keeps the event loop alive while the VM runs, even when nothing is under way. */
  ref(): this {
    this.#session.holdLoop(true);
    return this;
  }

  /** Undoes {@link ref}: only operations under way keep the event loop alive, as by default. */
  unref(): this {
    this.#session.holdLoop(false);
    return this;
  }

  // In a tick of its own: what a listener throws is its own uncaught exception.
  #emit<K extends keyof VmEvents>(event: K, ...args: VmEvents[K]): void {
    if (this.listenerCount(event) === 0) return;
    process.nextTick(() => {
      (this.emit as (event: K, ...args: VmEvents[K]) => boolean).call(this, event, ...args);
    });
  }
}
