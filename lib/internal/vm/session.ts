// One VM behind its public handle: what state it is in, who waits for it, and its release.
//
// The core's table holds sessions strongly and a session holds its handle weakly, so that a handle
// that nobody has any more can be collected and its VM be closed.

import type { VmError } from '../../errors.js';
import type { NativeExitReason, NativeVmStats } from '../../native.js';
import type { VmExit, VmTimings } from '../../vm-types.js';
import { AgentConnection } from '../agent/connection.js';
import { Renewal } from '../agent/renewal.js';
import type { AgentState } from '../agent/state.js';
import { Deferred } from '../base/deferred.js';
import { type Observation, observe } from '../base/diagnostics.js';
import { Turns } from '../base/turns.js';
import type { Environment } from '../base/validate.js';
import { Wait, type WaitOptions } from '../base/wait.js';
import type { Core, VmListener } from '../core.js';
import { CONTROL_PORT } from '../protocol/protocol.js';
import { type CheckedFork, DEFAULT_FORK_TIMEOUT_MS } from '../snapshot/fork-options.js';
import type { VmState } from '../snapshot/session-state.js';
import type { SnapshotCore } from '../snapshot/snapshot-core.js';
import { ConsoleBuffer } from './console-buffer.js';
import { closedError, exitedError, noSnapshotError, pausedError, resetError } from './errors.js';

export type SessionState = 'running' | 'paused' | 'exited' | 'closed';

/** What a session tells its handle. */
export interface SessionObserver {
  onConsole(data: Uint8Array): void;
  onExit(exit: VmExit): void;
}

export interface SessionInit {
  readonly id: string;
  readonly parentId: string | null;
  /** Of every command, complete. */
  readonly env: Environment;
  readonly hostname: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
}

/** Where a fork comes from, and how it was asked for. */
export interface SessionOrigin {
  readonly snapshot: SnapshotCore;
  readonly options: Pick<CheckedFork, 'start' | 'unique' | 'timeoutMs'>;
}

/** How a booted VM is renewed that is reset to a snapshot. */
const DEFAULT_RENEWAL = { start: 'now', timeoutMs: DEFAULT_FORK_TIMEOUT_MS } as const;

export class VmSession implements VmListener {
  readonly core: Core;
  /** Names it in calls of the addon. */
  readonly vm: number;
  readonly id: string;
  readonly parentId: string | null;
  readonly env: Environment;
  readonly hostname: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
  /** What changes the VM as a whole, one at a time: freezing, pausing, resetting. */
  readonly turns = new Turns();
  timings: VmTimings | undefined;
  /** Absent until it is needed: a fork may be closed before, or only its program be called */
  #agent: AgentConnection | undefined;
  readonly #console = new ConsoleBuffer();
  readonly #exited = new Deferred<VmExit>();
  /** From creation to exit, for diagnostics */
  readonly #life: Observation;
  readonly #waits = new Set<Wait>();
  readonly #origin: SessionOrigin | undefined;
  /** Absent while nothing has to be confirmed, and while there is no agent */
  #renewal: Renewal | undefined;
  /** What it was forked from or reset to last */
  #from: SnapshotCore | undefined;
  /** From the request for a reset until it is done */
  #restoring = false;
  /** Why a reset failed, after which only another one helps */
  #unrestored: (() => Error) | undefined;
  #generation = 0n;
  #observer: WeakRef<SessionObserver> | undefined;
  #state: 'running' | 'exited' | 'closed' = 'running';
  #paused = false;
  /** Why nothing can be asked of the VM any more */
  #over: (() => VmError) | undefined;
  #exit: VmExit | undefined;
  #connection: number | undefined;
  /** Counts resets, of which only the last one matters */
  #resets = 0;
  #commands = 0;
  #closing: Promise<void> | undefined;
  #releasing: Promise<void> | undefined;
  #holdsLoop = false;

  constructor(core: Core, vm: number, init: SessionInit, origin?: SessionOrigin) {
    this.core = core;
    this.vm = vm;
    this.id = init.id;
    this.parentId = init.parentId;
    this.env = init.env;
    this.hostname = init.hostname;
    this.memoryBytes = init.memoryBytes;
    this.vcpus = init.vcpus;
    this.#life = observe('exit', init, 'exit', () => ({}));
    // First, since it is what can fail.
    origin?.snapshot.acquire();
    this.#origin = origin;
    this.#connection = origin?.snapshot.info.connection;
    this.#from = origin?.snapshot;
    core.listen(vm, this);
  }

  get state(): SessionState {
    return this.#state === 'running' && this.#paused ? 'paused' : this.#state;
  }

  get agent(): AgentConnection {
    this.#agent ??= this.#firstAgent();
    return this.#agent;
  }

  get exited(): Promise<VmExit> {
    return this.#exited.promise;
  }

  /** A name for the next command, which no other command of this VM ever gets. */
  nextCommandId(): string {
    return `${this.id}/${++this.#commands}`;
  }

  observe(observer: SessionObserver): void {
    this.#observer = new WeakRef(observer);
  }

  console(): string {
    return this.#console.toString();
  }

  /** The end of the console, safe to print. */
  consoleTail(): string {
    return this.#console.tail();
  }

  /** Throws why the VM cannot be worked with, if it cannot. */
  expectRunning(): void {
    if (this.#over !== undefined) throw this.#over();
    if (this.#paused) throw pausedError();
  }

  /** A wait that also ends with the VM, or with its reset. The caller ends it. */
  wait(options: Omit<WaitOptions, 'onEnd'>): Wait {
    const wait = new Wait({ ...options, onEnd: (ended) => this.#waits.delete(ended) });
    if (this.#over !== undefined) wait.cut(this.#over);
    else this.#waits.add(wait);
    return wait;
  }

  /**
   * Resolves when the guest is known to be unique, which it is made if need be. Nobody has to
   * listen when it rejects.
   */
  confirmed(): Promise<void> {
    const renewal = this.#needed();
    if (renewal === undefined) return Promise.resolve();
    renewal.begin();
    return renewal.ready;
  }

  /** Whether a parked program takes care of its own uniqueness, so that a call need not wait. */
  get programIsUnique(): boolean {
    return this.#from?.at === 'program' && this.#origin?.options.unique === 'program';
  }

  /** A fork has been handed over, or was reset: lets it run if it is to run at once. */
  start(): void {
    const { start } = this.#origin?.options ?? DEFAULT_RENEWAL;
    if (start === 'now' && !this.programIsUnique) this.#needed()?.begin();
  }

  /** The renewal that is to be confirmed, if there is one. */
  #needed(): Renewal | undefined {
    this.#agent ??= this.#firstAgent();
    return this.#renewal;
  }

  /** What forks take over; while the VM is frozen. */
  exportState(): VmState {
    const env = Object.entries(this.env).flatMap(([name, value]) =>
      value === undefined ? [] : [[name, value] as const],
    );
    const generation = this.#generation.toString(16);
    return {
      env: Object.fromEntries(env),
      hostname: this.hostname,
      agent: { ...this.agent.exportState(), generation },
    };
  }

  async stats(): Promise<NativeVmStats> {
    if (this.#releasing !== undefined && this.#over !== undefined) throw this.#over();
    return await this.core.request((id) => this.core.native.stats(id, this.vm));
  }

  async pause(): Promise<void> {
    await this.turns.run(async () => {
      if (this.#over !== undefined) throw this.#over();
      if (this.#paused) return;
      this.#paused = true;
      const { agent } = this;
      agent.suspend(pausedError);
      try {
        await this.core.request((id) => this.core.native.pauseVm(id, this.vm));
      } catch (error) {
        this.#paused = false;
        agent.resume();
        throw error;
      }
    });
  }

  async resume(): Promise<void> {
    await this.turns.run(async () => {
      if (this.#over !== undefined) throw this.#over();
      if (!this.#paused) return;
      await this.core.request((id) => this.core.native.resumeVm(id, this.vm));
      this.#paused = false;
      this.agent.resume();
    });
  }

  /**
   * Puts the VM back to a snapshot. What is pending fails at once; what is asked of the VM from now
   * on waits for the reset.
   */
  async reset(to: SnapshotCore | undefined): Promise<void> {
    if (this.#over !== undefined) throw this.#over();
    const snapshot = to ?? this.#origin?.snapshot;
    if (snapshot === undefined) throw noSnapshotError();
    expectSameSize(this, snapshot.info);
    snapshot.acquire();
    try {
      await this.#reset(snapshot);
    } finally {
      await snapshot.release();
    }
  }

  async #reset(snapshot: SnapshotCore): Promise<void> {
    const reset = ++this.#resets;
    for (const wait of [...this.#waits]) wait.cut(resetError);
    this.#renewal?.fail(resetError);
    this.#agent?.fail(resetError);
    // What still comes of the old connection is nobody's.
    this.#connection = undefined;
    this.#agent = undefined;
    this.#renewal = undefined;
    this.#from = snapshot;
    this.#restoring = true;
    this.#unrestored = undefined;
    await this.turns
      .run(async () => {
        if (this.#over !== undefined) throw this.#over();
        await this.core.request<unknown, void>(
          (id) => this.core.native.resetVm(id, this.vm, snapshot.number),
          () => {
            if (reset === this.#resets) this.#connection = snapshot.info.connection;
          },
        );
        this.#paused = false;
      })
      .catch((error: VmError) => {
        if (reset === this.#resets) this.#failReset(() => error);
        throw error;
      });
    if (reset === this.#resets) this.#endReset();
  }

  #endReset(): void {
    this.#restoring = false;
    this.#agent?.gate.open('reset');
    this.#renewal?.restored();
    this.start();
  }

  #failReset(error: () => VmError): void {
    this.#unrestored = error;
    this.#agent?.fail(error);
    this.#renewal?.fail(error);
  }

  /** Whether the running VM itself keeps the event loop alive. */
  holdLoop(hold: boolean): void {
    if (hold === this.#holdsLoop || (hold && this.#state !== 'running')) return;
    this.#holdsLoop = hold;
    if (hold) this.core.acquire();
    else this.core.release();
  }

  /** Stops and releases the VM; resolves when nothing of it is left. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#state = 'closed';
    this.#end(closedError);
    try {
      await this.#release();
    } finally {
      this.core.remove(this.vm);
      this.#setExit('closed', 'The VM was closed');
    }
  }

  #release(): Promise<void> {
    this.#releasing ??= this.core
      .request<void>((id) => this.core.native.closeVm(id, this.vm))
      .finally(() => this.#origin?.snapshot.release());
    return this.#releasing;
  }

  // From the core.

  onConsole(data: Uint8Array): void {
    this.#console.append(data);
    this.#observer?.deref()?.onConsole(data);
  }

  onExit({ reason, detail }: { reason: NativeExitReason; detail: string }): void {
    this.#stopped(reason, detail, () => exitedError(reason, detail, this.#console.tail()));
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

  #firstAgent(): AgentConnection {
    const from = this.#from;
    const agent = this.#connect(from?.vm.agent);
    if (this.#restoring) agent.gate.close('reset');
    if (from !== undefined) this.#renewal = this.#needRenewal(agent, from);
    const failure = this.#over ?? this.#unrestored;
    if (failure !== undefined) {
      agent.fail(failure);
      this.#renewal?.fail(failure);
    }
    return agent;
  }

  #connect(state?: AgentState): AgentConnection {
    const { native } = this.core;
    return new AgentConnection(
      {
        send: (data) => this.#onConnection((id) => native.send(this.vm, id, data)),
        consume: (bytes) => this.#onConnection((id) => native.consume(this.vm, id, bytes)),
        disconnect: () => this.#onConnection((id) => native.disconnect(this.vm, id)),
      },
      this.core,
      {
        ...(state !== undefined && {
          state,
          onRenewed: (message) => this.#renewal?.onRenewed(message),
          onBroken: (message) => this.#renewal?.refuse(message),
        }),
      },
    );
  }

  #onConnection(use: (connection: number) => void): void {
    if (this.#connection !== undefined && this.#state === 'running') use(this.#connection);
  }

  /** Holds back all work until the guest has confirmed that it is unique. */
  #needRenewal(agent: AgentConnection, snapshot: SnapshotCore): Renewal {
    const { timeoutMs } = this.#origin?.options ?? DEFAULT_RENEWAL;
    const renewal = new Renewal(
      {
        start: () => {
          // An agent that parked looks by itself; where a program did, it has to be told.
          if (snapshot.at === 'agent') this.core.native.enterVm(this.vm);
          else agent.renew();
        },
        isPaused: () => this.#paused,
        succeeded: (generation) => {
          this.#generation = generation;
          agent.gate.open('renewal');
        },
        failed: (error) => this.#failClosed(error),
      },
      this.core,
      {
        parentGeneration: BigInt(`0x${snapshot.vm.agent.generation}`),
        timeoutMs,
        restored: !this.#restoring,
      },
    );
    agent.gate.close('renewal');
    agent.gate.onceHeld(() => renewal.begin());
    return renewal;
  }

  /** A fork that is not known to be unique must not run on. */
  #failClosed(error: () => VmError): void {
    this.#stopped('not-unique', error().message, error);
    this.#release().catch(() => {});
  }

  #stopped(reason: VmExit['reason'], detail: string, error: () => VmError): void {
    if (this.#state !== 'running') return;
    this.#state = 'exited';
    this.#setExit(reason, detail);
    this.#end(error);
  }

  /** Fails everything that is asked of the VM now and later. */
  #end(error: () => VmError): void {
    this.#over = error;
    this.holdLoop(false);
    this.#agent?.fail(error);
    this.#renewal?.fail(error);
    for (const wait of [...this.#waits]) wait.cut(error);
  }

  #setExit(reason: VmExit['reason'], detail: string): void {
    if (this.#exit !== undefined) return;
    this.#exit = { reason, detail, console: this.#console.toString() };
    this.#exited.resolve(this.#exit);
    this.#life.succeed({ reason, detail });
    this.#observer?.deref()?.onExit(this.#exit);
  }
}

function expectSameSize(
  vm: Pick<SessionInit, 'memoryBytes' | 'vcpus'>,
  snapshot: Pick<SessionInit, 'memoryBytes' | 'vcpus'>,
): void {
  if (vm.memoryBytes === snapshot.memoryBytes && vm.vcpus === snapshot.vcpus) return;
  throw new RangeError(
    'A VM can be reset to snapshots of its own size only: it has ' +
      `${vm.memoryBytes} bytes and ${vm.vcpus} vCPUs, the snapshot has ` +
      `${snapshot.memoryBytes} bytes and ${snapshot.vcpus}`,
  );
}
