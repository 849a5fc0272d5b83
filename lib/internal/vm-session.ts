// One VM behind its public handle: events of the core, boot, exit and release.
//
// The core's table holds sessions strongly and a session holds its handle weakly, so that a handle
// that nobody has any more can be collected and its VM be closed.

import { AbortError, VmError } from '../errors.js';
import type {
  NativeBootTimes,
  NativeExitReason,
  NativeVmConfig,
  NativeVmStats,
} from '../native.js';
import type { VmExit, VmTimings } from '../vm.js';
import { AgentConnection } from './agent-connection.js';
import { ConsoleBuffer } from './console-buffer.js';
import type { Core, VmListener } from './core.js';
import { Deferred } from './deferred.js';
import { type Observation, observe } from './diagnostics.js';
import { CONTROL_PORT, encodeConfigure } from './protocol.js';

export type VmState = 'running' | 'exited' | 'closed';

/** What a session tells its handle. */
export interface SessionObserver {
  onConsole(data: Uint8Array): void;
  onExit(exit: VmExit): void;
}

export interface BootRequest {
  readonly config: NativeVmConfig;
  readonly hostname: string;
  readonly bootTimeoutMs: number;
  readonly signal: AbortSignal | undefined;
  /** `performance.now()` of the call. */
  readonly startedAt: number;
}

export class VmSession implements VmListener {
  readonly agent: AgentConnection;
  readonly #core: Core;
  readonly #vm: number;
  readonly #console = new ConsoleBuffer();
  readonly #exited = new Deferred<VmExit>();
  /** From creation to exit, for diagnostics */
  readonly #life: Observation;
  /** What ends a boot from outside; made into an error where the caller is on the stack. */
  readonly #bootFailure = new Deferred<() => Error>();
  #observer: WeakRef<SessionObserver> | undefined;
  #state: VmState = 'running';
  #exit: VmExit | undefined;
  #connection: number | undefined;
  #closing: Promise<void> | undefined;
  #holdsLoop = false;

  constructor(core: Core, vm: { readonly id: string; readonly parentId: string | null }) {
    this.#core = core;
    this.#life = observe('exit', vm, 'exit', () => ({}));
    this.#vm = core.add(this);
    this.agent = new AgentConnection(
      {
        send: (data) => this.#onConnection((id) => core.native.send(this.#vm, id, data)),
        consume: (bytes) => this.#onConnection((id) => core.native.consume(this.#vm, id, bytes)),
        disconnect: () => this.#onConnection((id) => core.native.disconnect(this.#vm, id)),
      },
      core,
    );
  }

  get state(): VmState {
    return this.#state;
  }

  get exited(): Promise<VmExit> {
    return this.#exited.promise;
  }

  observe(observer: SessionObserver): void {
    this.#observer = new WeakRef(observer);
  }

  console(): string {
    return this.#console.toString();
  }

  /** Boots until the agent is configured. On failure the VM is gone when this rejects. */
  async boot(request: BootRequest): Promise<VmTimings> {
    const { bootTimeoutMs, signal } = request;
    const left = Math.max(0, bootTimeoutMs - (performance.now() - request.startedAt));
    const timer = setTimeout(() => {
      this.#bootFailure.resolve(() => this.#bootTimeout(bootTimeoutMs));
    }, left).unref();
    const onAbort = (): void => this.#bootFailure.resolve(() => new AbortError(signal?.reason));
    signal?.addEventListener('abort', onAbort, { once: true });
    // Boot has no operation at first, but somebody waits for it.
    this.#core.acquire();
    try {
      const outcome = await Promise.race([this.#boot(request), this.#bootFailure.promise]);
      if (typeof outcome === 'function') throw outcome();
      return outcome;
    } catch (error) {
      await this.close();
      throw error;
    } finally {
      this.#core.release();
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    }
  }

  async #boot({ config, hostname, startedAt }: BootRequest): Promise<VmTimings> {
    const postedAt = performance.now();
    const times = await this.#core.request<NativeBootTimes>((id) =>
      this.#core.native.createVm(id, this.#vm, config),
    );
    await this.agent.hello;
    const helloAt = performance.now();
    const reply = await this.agent.begin('other', ({ id }) => encodeConfigure(id, { hostname }))
      .reply;
    if (reply.errno !== 0) {
      throw new VmError({
        code: 'ERR_VM_AGENT_PROTOCOL',
        message: `The guest agent refused its configuration: errno ${reply.errno}`,
        errno: -reply.errno,
      });
    }
    const readyAt = performance.now();
    const ms = (from: number, to: number): number => (to - from) / 1e6;
    return {
      prepareMs: postedAt - startedAt,
      createMs: ms(0, times.vmCreated),
      loadMs: ms(times.vmCreated, times.kernelLoaded),
      startMs: ms(times.kernelLoaded, times.entered),
      guestMs: helloAt - postedAt - ms(0, times.entered),
      configureMs: readyAt - helloAt,
      totalMs: readyAt - startedAt,
    };
  }

  async stats(): Promise<NativeVmStats> {
    if (this.#state === 'closed') throw this.#closedError();
    return await this.#core.request((id) => this.#core.native.stats(id, this.#vm));
  }

  /** Whether the running VM itself keeps the event loop alive. */
  holdLoop(hold: boolean): void {
    if (hold === this.#holdsLoop || (hold && this.#state !== 'running')) return;
    this.#holdsLoop = hold;
    if (hold) this.#core.acquire();
    else this.#core.release();
  }

  /** Stops and releases the VM; resolves when nothing of it is left. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#state = 'closed';
    this.holdLoop(false);
    this.agent.fail(() => this.#closedError());
    try {
      await this.#core.request((id) => this.#core.native.closeVm(id, this.#vm));
    } finally {
      this.#core.remove(this.#vm);
      this.#setExit('closed', 'The VM was closed');
    }
  }

  // From the core.

  onConsole(data: Uint8Array): void {
    this.#console.append(data);
    this.#observer?.deref()?.onConsole(data);
  }

  onExit({ reason, detail }: { reason: NativeExitReason; detail: string }): void {
    if (this.#state !== 'running') return;
    this.#state = 'exited';
    this.holdLoop(false);
    this.#setExit(reason, detail);
    this.#bootFailure.resolve(() => this.#exitedError());
    this.agent.fail(() => this.#exitedError());
  }

  onConnectionOpened(connection: number, port: number): void {
    // The core refuses all others; an agent dials once.
    if (port === CONTROL_PORT) this.#connection ??= connection;
  }

  onConnectionData(connection: number, data: Uint8Array): void {
    if (connection === this.#connection) this.agent.receive(data);
  }

  onConnectionSent(connection: number, bytes: number): void {
    if (connection === this.#connection) this.agent.sent(bytes);
  }

  onConnectionClosed(connection: number): void {
    if (connection !== this.#connection) return;
    this.#connection = undefined;
    this.agent.closed();
  }

  #onConnection(use: (connection: number) => void): void {
    if (this.#connection !== undefined && this.#state === 'running') use(this.#connection);
  }

  #setExit(reason: VmExit['reason'], detail: string): void {
    if (this.#exit !== undefined) return;
    this.#exit = { reason, detail, console: this.#console.toString() };
    this.#exited.resolve(this.#exit);
    this.#life.succeed({ reason, detail });
    this.#observer?.deref()?.onExit(this.#exit);
  }

  #exitedError(): VmError {
    const { reason, detail } = this.#exit ?? { reason: 'host-error', detail: '' };
    const more = detail === '' ? '' : `: ${detail}`;
    return new VmError({
      code: 'ERR_VM_EXITED',
      message: `The VM has stopped running (${reason}${more})`,
      detail: this.#console.tail(),
    });
  }

  #bootTimeout(bootTimeoutMs: number): VmError {
    return new VmError({
      code: 'ERR_VM_BOOT_TIMEOUT',
      message:
        `The guest agent did not answer within ${bootTimeoutMs} ms; the VM was closed. ` +
        'The end of its console is in `detail`; raise bootTimeoutMs if it was still at work.',
      detail: this.#console.tail(),
    });
  }

  #closedError(): VmError {
    return new VmError({ code: 'ERR_VM_CLOSED', message: 'The VM was closed' });
  }
}
