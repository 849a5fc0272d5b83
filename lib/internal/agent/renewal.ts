// How a fork becomes a machine of its own: it must not have its parent's random numbers, clock and
// names, and must have confirmed that before anything is asked of it.

import { describeErrno, VmError } from '../../errors.js';
import { Deferred } from '../base/deferred.js';
import type { LoopHold } from '../core.js';
import { ProtocolError, type RenewedMessage, RenewStage } from '../protocol/protocol.js';

export interface RenewalTarget {
  /** Lets the guest run as far as it takes. */
  start(): void;
  /** Whether the guest stands still, so that it cannot answer. */
  isPaused(): boolean;
  succeeded(generation: bigint): void;
  failed(error: () => VmError): void;
}

export interface RenewalOptions {
  /** The generation of the frozen VM, which must not come again. */
  readonly parentGeneration: bigint;
  /** From the start to the guest's confirmation. */
  readonly timeoutMs: number;
  /** Whether the VM is what it is to be, so that it can be started. */
  readonly restored: boolean;
}

const STAGES: Readonly<Record<number, string>> = {
  [RenewStage.entropy]: 'reseeding its random numbers',
  [RenewStage.clock]: 'setting its clock',
  [RenewStage.hostname]: 'setting its host name',
  [RenewStage.machineId]: 'writing its machine id',
  [RenewStage.generation]: 'writing its generation',
  [RenewStage.hook]: 'running its hooks',
};

/** One renewal, from a fork or reset until the guest has confirmed it. */
export class Renewal {
  readonly #target: RenewalTarget;
  readonly #hold: LoopHold;
  readonly #options: RenewalOptions;
  readonly #ready = new Deferred<void>();
  #state: 'idle' | 'running' | 'over' = 'idle';
  #restored: boolean;
  #wanted = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(target: RenewalTarget, hold: LoopHold, options: RenewalOptions) {
    this.#target = target;
    this.#hold = hold;
    this.#options = options;
    this.#restored = options.restored;
  }

  /** Resolves when the guest has confirmed; nobody has to listen when it rejects. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** The VM has been restored now: what was wanted meanwhile begins. */
  restored(): void {
    this.#restored = true;
    if (this.#wanted) this.begin();
  }

  /** Starts it, unless it has been started. */
  begin(): void {
    this.#wanted = true;
    if (this.#state !== 'idle' || !this.#restored) return;
    this.#state = 'running';
    this.#hold.acquire();
    const timer = setTimeout(() => {
      if (this.#target.isPaused()) timer.refresh();
      else this.refuse(`did not confirm within ${this.#options.timeoutMs} ms`);
    }, this.#options.timeoutMs).unref();
    this.#timer = timer;
    this.#target.start();
  }

  /** The guest's confirmation. */
  onRenewed(message: RenewedMessage): void {
    if (this.#state !== 'running') throw new ProtocolError('a renewal that nobody waits for');
    const { errno, generation } = message;
    if (errno !== 0) {
      this.refuse(explain(message));
    } else if (generation === 0n || generation === this.#options.parentGeneration) {
      this.refuse('has kept the generation of the VM that it was forked from');
    } else {
      this.#end();
      this.#target.succeeded(generation);
      this.#ready.resolve();
    }
  }

  /** The VM has ended, or goes on as another one: there will be no confirmation. */
  fail(error: () => Error): void {
    if (this.#state === 'over') return;
    this.#end();
    this.#ready.reject(error());
  }

  /** There is no confirmation to be had from that guest. */
  refuse(problem: string): void {
    if (this.#state === 'over') return;
    const error = (): VmError =>
      new VmError({
        code: 'ERR_VM_NOT_UNIQUE',
        message: `The fork ${problem}; it was stopped, since it might repeat what its siblings do`,
      });
    this.fail(error);
    this.#target.failed(error);
  }

  #end(): void {
    clearTimeout(this.#timer);
    if (this.#state === 'running') this.#hold.release();
    this.#state = 'over';
  }
}

function explain({ errno, stage, hook, exitCode, signal }: RenewedMessage): string {
  const what = STAGES[stage ?? 0] ?? 'making itself unique';
  const at = hook === null ? '' : ` (${hook})`;
  const how =
    exitCode !== null
      ? `exit code ${exitCode}`
      : signal !== null
        ? `signal ${signal}`
        : describeErrno(errno).code;
  return `failed at ${what}${at}: ${how}`;
}
