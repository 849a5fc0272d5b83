import { EventEmitter } from 'node:events';
import type { Duplex } from 'node:stream';

import type { ConnectOptions, ForwardOptions, WaitForPortOptions } from './connections.js';
import type { ExecCommand, ExecOptions, ExecProcess } from './exec.js';
import { GuestFs } from './guest-fs.js';
import { observe, observed } from './internal/base/diagnostics.js';
import { newId } from './internal/base/ids.js';
import { checkText, show } from './internal/base/validate.js';
import { kvmPath } from './internal/boot/artifacts.js';
import { boot } from './internal/boot/boot.js';
import { prepareBoot } from './internal/boot/prepare-boot.js';
import { connect, waitForPort } from './internal/connect/connect.js';
import { checkForward } from './internal/connect/options.js';
import { Core } from './internal/core.js';
import { attachCommand, startCommand } from './internal/exec/start.js';
import { type ForkParent, forkMany, forkOne } from './internal/snapshot/fork.js';
import { checkSnapshot } from './internal/snapshot/fork-options.js';
import { freeze } from './internal/snapshot/freeze.js';
import { type FirstCall, ParkedCalls } from './internal/snapshot/parked-call.js';
import type { Guest } from './internal/vm/guest.js';
import { type SessionObserver, VmSession } from './internal/vm/session.js';
import { toVmStats, type VmStats } from './internal/vm/stats.js';
import { checkVmOptions, DEFAULT_ENVIRONMENT, type VmOptions } from './options.js';
import { ParkedProgram } from './parked.js';
import { PortForward } from './port-forward.js';
import { type ForkOptions, Snapshot, type SnapshotOptions } from './snapshot.js';
import type { ProcessInfo, VmEvents, VmExit, VmTimings } from './vm-types.js';

export type { VmStats } from './internal/vm/stats.js';
export type * from './vm-types.js';

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
  readonly parentId: string | null;
  readonly #session: VmSession;
  readonly #guest: Guest;
  #fs: GuestFs | undefined;
  #parked: ParkedProgram | undefined;
  /** Held here alone, since the session holds it weakly. */
  readonly #observer: SessionObserver;
  #closed: Promise<void> | undefined;

  private constructor(session: VmSession) {
    super();
    const { id, parentId, env } = session;
    this.id = id;
    this.parentId = parentId;
    this.#session = session;
    this.#guest = {
      id,
      parentId,
      env,
      owner: this,
      get agent() {
        return session.agent;
      },
      nextCommandId: () => session.nextCommandId(),
    };
    this.#observer = {
      onConsole: (data) => this.#emit('console', Buffer.from(data)),
      onExit: (exit) => this.#emit('exit', exit),
    };
    session.observe(this.#observer);
    abandoned.register(this, { session, id }, this);
  }

  /** How long each stage of the boot or fork took. */
  get timings(): VmTimings {
    // Nobody has the handle before.
    return this.#session.timings as VmTimings;
  }

  /** Files of the guest. */
  get fs(): GuestFs {
    this.#fs ??= new GuestFs(this.#guest);
    return this.#fs;
  }

  /** The guest program that has parked itself. */
  get parked(): ParkedProgram {
    this.#parked ??= this.#makeParked();
    return this.#parked;
  }

  #makeParked(first?: FirstCall): ParkedProgram {
    return new ParkedProgram(this.#guest, new ParkedCalls(this.#session), first);
  }

  /** @internal The handle of a VM, which may still be made. */
  static of(session: VmSession): Vm {
    return new Vm(session);
  }

  /** @internal Begins the call that a fork was made with. */
  static callFirst(vm: Vm, first: FirstCall): void {
    vm.#parked = vm.#makeParked(first);
  }

  /** @internal */
  static sessionOf(vm: Vm): VmSession {
    return vm.#session;
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
    const id = newId('vm');
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
    return await observed(observation, async () => {
      const core = Core.get();
      const { kernelPath, initramfs } = await prepareBoot(checked);
      const env = { ...DEFAULT_ENVIRONMENT, ...checked.env };
      const session = new VmSession(core, core.newVm(), {
        id,
        parentId: null,
        env,
        hostname,
        memoryBytes,
        vcpus,
      });
      const { kernelArgs } = checked;
      const config = { memoryBytes, vcpus, kvmPath: kvmPath(), kernelPath, kernelArgs, initramfs };
      await boot(session, { config, bootTimeoutMs, signal, startedAt });
      const vm = new Vm(session);
      return { value: vm, result: { ...vm.timings } };
    });
  }

  /** `'exited'` means that the guest stopped; what it held is released by {@link close}. */
  get state(): 'running' | 'paused' | 'exited' | 'closed' {
    return this.#session.state;
  }

  /**
   * Resolves when the VM is known to be unique, which a booted one is; work waits for it by itself.
   * Asking for it starts a fork that has not been started. After {@link reset} it is another
   * promise. Never raises `unhandledRejection`.
   *
   * @throws {VmError} `ERR_VM_NOT_UNIQUE`: the guest failed or did not confirm; the VM was stopped.
   *   `ERR_VM_EXITED`, `ERR_VM_CLOSED`, `ERR_VM_RESET`: it came to an end before.
   */
  get ready(): Promise<void> {
    return this.#session.confirmed();
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
    return startCommand(this.#guest, command, options);
  }

  /**
   * Commands that were started by {@link exec} and run: here, and in the VM that this one was
   * forked from, before it was frozen. Does not start a fork that has not been started.
   *
   * @throws {VmError} why the VM cannot be worked with.
   */
  async processes(): Promise<ProcessInfo[]> {
    const { agent } = this.#session;
    if (agent.failure !== undefined) throw agent.failure;
    await agent.commandsStarted();
    return agent.commands.map(({ id, pid, command, startedAtMs }) => ({
      id,
      pid,
      command,
      startedAt: new Date(startedAtMs),
    }));
  }

  /**
   * A handle for a command that runs, by the id of {@link processes} or {@link ExecProcess.started}.
   *
   * In a fork its streams go on where they were when the VM was frozen: standard input can be
   * written to, and output, `exited` and the result are what follows. What the parent had read, or
   * was about to write, is not repeated. A command that has ended in the fork before anybody
   * attached to it still has its handle, once.
   *
   * In the VM that started it, this is another handle for the same command: its streams belong to
   * whoever took them first, and its result is in the encoding that was asked for there.
   *
   * @throws {TypeError} at once: `id` is not a string.
   * @throws {ExecError} by the handle: `ERR_VM_EXEC` with errno `ESRCH`: there is no such command.
   *   Otherwise as {@link exec}.
   */
  attach(id: string): ExecProcess<string> {
    return attachCommand(this.#guest, checkText('id', id));
  }

  /**
   * Connects to a TCP port of the guest's loopback: 127.0.0.1, or ::1 where nobody listens there.
   * Ends, resets and errors are those of a `net.Socket`; a reset of the VM ends the connection with
   * `ERR_VM_RESET`, and forks of the VM do not have it.
   *
   * An error that nobody listens to is no uncaught exception.
   *
   * @param port - 1 to 65 535.
   * @throws {TypeError} unknown option, or one of a wrong type.
   * @throws {RangeError} `port` or an option is out of range.
   * @throws {NodeJS.ErrnoException} `ECONNREFUSED`: nobody listens there. `EMFILE`, `EAGAIN`,
   *   `ENOMEM`: the guest's agent has too many open.
   * @throws {VmError} `ERR_VM_TIMEOUT`. `ERR_VM_PAUSED`, `ERR_VM_RESET`, `ERR_VM_NOT_UNIQUE`,
   *   `ERR_VM_EXITED`, `ERR_VM_CLOSED`, `ERR_VM_AGENT_UNRESPONSIVE`: of the VM.
   * @throws {AbortError} `signal` was aborted.
   */
  connect(port: number, options?: ConnectOptions): Promise<Duplex> {
    return connect(this.#guest, port, options);
  }

  /**
   * Resolves when something listens at a TCP port that {@link connect} would reach. The agent looks
   * at intervals, inside the guest; the listener sees nothing of it.
   *
   * @param port - 1 to 65 535.
   * @throws what {@link connect} throws, but for `ECONNREFUSED`.
   */
  waitForPort(port: number, options?: WaitForPortOptions): Promise<void> {
    return waitForPort(this.#guest, port, options);
  }

  /**
   * Listens at a TCP port of this host's loopback and takes every connection to a port of the guest,
   * which need not be listened at yet. A connection that the guest does not take, or while the VM is
   * paused, is reset. It is closed with the VM; a reset of the VM ends its connections only.
   *
   * @throws {TypeError} unknown option, or one of a wrong type.
   * @throws {RangeError} an option is out of range.
   * @throws {NodeJS.ErrnoException} of node:net, such as `EADDRINUSE`.
   * @throws {VmError} `ERR_VM_EXITED`, `ERR_VM_CLOSED`: of the VM.
   */
  async forward(options: ForwardOptions): Promise<PortForward> {
    const checked = checkForward(options);
    return await PortForward.open(this.#guest, this.#session.exited, checked);
  }

  /**
   * Freezes this VM, which goes on after some milliseconds: a VM that has not been frozen before
   * copies nothing, later ones what they have written since. What is asked of the VM meanwhile
   * waits.
   *
   * @returns the snapshot, owned by the caller.
   * @throws {TypeError} unknown option, or one of a wrong type.
   * @throws {RangeError} `timeoutMs` or the length of `label` out of range.
   * @throws {VmError} `ERR_VM_PARK_TIMEOUT`: the guest did not stand still at `at` in time.
   *   `ERR_VM_PAUSED`, `ERR_VM_RESET`, `ERR_VM_NOT_UNIQUE`, `ERR_VM_EXITED`, `ERR_VM_CLOSED`: of
   *   the VM. `ERR_VM_NO_MEMORY`, `ERR_VM_KVM`, `ERR_VM_SYSTEM`: see `syscall` and `errno`.
   * @throws {AbortError} `signal` was aborted.
   */
  async snapshot(options?: SnapshotOptions): Promise<Snapshot> {
    const checked = checkSnapshot(options);
    const { at, label, timeoutMs } = checked;
    const observation = observe('snapshot', this, 'snapshot', () => ({ at, label, timeoutMs }));
    return await observed(observation, async () => {
      const core = await freeze(this.#session, checked);
      const { memoryBytes, copiedPages, parkNs, stoppedNs } = core.info;
      const times = { parkMs: parkNs / 1e6, stoppedMs: stoppedNs / 1e6 };
      const result = { snapshotId: core.id, memoryBytes, copiedPages, ...times };
      return { value: Snapshot.of(core), result };
    });
  }

  /**
   * Makes a VM that goes on where this one is, as {@link snapshot} and its `fork()` would; this one
   * goes on as well.
   *
   * @throws what {@link snapshot} and {@link Snapshot.fork} throw.
   */
  fork(options?: ForkOptions): Promise<Vm> {
    return forkOne(this.#parent(), options);
  }

  /**
   * Makes `count` VMs that go on where this one is: all of them or, on failure, none. It is frozen
   * once.
   *
   * @param count - 1 to 100 000.
   * @throws what {@link snapshot} and {@link Snapshot.forkMany} throw.
   */
  forkMany(count: number, options?: ForkOptions): Promise<Vm[]> {
    return forkMany(this.#parent(), count, options);
  }

  /**
   * Puts this VM back to a snapshot, in place: it keeps its `id` and its handle. Pending work
   * rejects with `ERR_VM_RESET`, and connections are gone. Resolves when it is restored; work
   * waits until it is unique by itself. A paused VM runs afterwards. A fork starts as its option
   * {@link ForkOptions.start} says.
   *
   * If it fails, the VM can only be reset again or closed.
   *
   * @param to - of the same size of memory and number of vCPUs; by default the snapshot that this
   *   VM was forked from, even if that was closed.
   * @throws {TypeError} `to` is not a Snapshot.
   * @throws {RangeError} `to` is of another size.
   * @throws {VmError} `ERR_VM_NO_SNAPSHOT`: the VM was booted, and none is given.
   *   `ERR_VM_EXITED`, `ERR_VM_CLOSED`: of the VM, or `to` was closed. `ERR_VM_KVM`,
   *   `ERR_VM_SYSTEM`: see `syscall` and `errno`.
   */
  async reset(to?: Snapshot): Promise<void> {
    if (to !== undefined && !(to instanceof Snapshot)) {
      throw new TypeError(`vm.reset() takes a Snapshot; got ${show(to)}`);
    }
    const observation = observe('reset', this, 'reset', () => ({ to: to?.id }));
    await observed(observation, async () => {
      await this.#session.reset(to && Snapshot.coreOf(to));
      return { value: undefined };
    });
  }

  /**
   * Stops the vCPUs; resolves when they stand still. Nothing is lost, and new work rejects with
   * `ERR_VM_PAUSED`. Pending work waits, and so do timeouts and aborts of commands, which take
   * effect when the VM runs again. May be called more than once.
   *
   * @throws {VmError} `ERR_VM_EXITED`, `ERR_VM_CLOSED`, `ERR_VM_NOT_UNIQUE`: of the VM.
   */
  async pause(): Promise<void> {
    await observed(
      observe('pause', this, 'pause', () => ({})),
      async () => ({ value: await this.#session.pause() }),
    );
  }

  /**
   * Lets a paused VM run on; nothing happens to one that runs.
   *
   * @throws {VmError} `ERR_VM_EXITED`, `ERR_VM_CLOSED`, `ERR_VM_NOT_UNIQUE`: of the VM.
   */
  async resume(): Promise<void> {
    await observed(
      observe('pause', this, 'resume', () => ({})),
      async () => ({ value: await this.#session.resume() }),
    );
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
    return await observed(
      observe('stats', this, 'stats', () => ({})),
      async () => ({ value: toVmStats(await this.#session.stats()) }),
    );
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
    await observed(
      observe('close', this, 'close', () => ({})),
      async () => ({ value: await this.#session.close() }),
    );
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

  #parent(): ForkParent {
    const session = this.#session;
    return {
      id: this.id,
      kind: 'vm',
      vcpus: session.vcpus,
      hold: ({ timeoutMs, signal }) =>
        freeze(session, { at: 'agent', label: undefined, timeoutMs, signal }),
    };
  }

  // In a tick of its own: what a listener throws is its own uncaught exception.
  #emit<K extends keyof VmEvents>(event: K, ...args: VmEvents[K]): void {
    if (this.listenerCount(event) === 0) return;
    process.nextTick(() => {
      (this.emit as (event: K, ...args: VmEvents[K]) => boolean).call(this, event, ...args);
    });
  }
}
