// Forks of a snapshot, or of a running VM that is frozen for it.

import { AbortError, VmError } from '../../errors.js';
import type { NativeForkTimes } from '../../native.js';
import type { ForkOptions } from '../../snapshot.js';
import { Vm } from '../../vm.js';
import { type Observation, observe, observed } from '../base/diagnostics.js';
import { newId } from '../base/ids.js';
import { Wait } from '../base/wait.js';
import { VmSession } from '../vm/session.js';
import { checkForkLimits } from './fork-limits.js';
import { type CheckedFork, checkFork, checkForkCount, defaultCall } from './fork-options.js';
import { type FirstCall, postCall } from './parked-call.js';
import { SnapshotCore } from './snapshot-core.js';

/** What is forked. */
export interface ForkParent {
  readonly id: string;
  /** For the message of wrong options, such as `'snapshot'`. */
  readonly kind: 'vm' | 'snapshot';
  readonly vcpus: number;
  /** The frozen machine, held once for the caller. */
  hold(options: CheckedFork): SnapshotCore | Promise<SnapshotCore>;
}

interface ForkRequest {
  readonly options: CheckedFork;
  /** What the forks say that they come from. */
  readonly parentId: string;
  /** `performance.now()` of the call. */
  readonly startedAt: number;
}

/**
 * `fork()`. The core has its request when this returns, and a fork that is ready is handed over
 * within few turns of the microtask queue: JavaScript is most of what it costs.
 */
export function forkOne(parent: ForkParent, options: ForkOptions | undefined): Promise<Vm> {
  const made = makeOne(parent, options);
  startOnceHandedOver(made, (vm) => [vm]);
  return made;
}

async function makeOne(parent: ForkParent, options: ForkOptions | undefined): Promise<Vm> {
  const startedAt = performance.now();
  const checked = checkFork(`${parent.kind}.fork()`, options);
  const id = newId('vm');
  // Made when it is over, like all that the core need not wait for.
  const observation = (): Observation =>
    observe('fork', { id, parentId: parent.id }, 'fork', () => describe(checked), startedAt);
  try {
    const held = parent.hold(checked);
    const snapshot = held instanceof SnapshotCore ? held : await held;
    const wait = new ForkWait(checked);
    try {
      const request = { options: checked, parentId: parent.id, startedAt };
      const vm = await makeVm(snapshot, id, request, wait);
      if (wait.aborted) await wait.giveUp([vm]);
      observation().succeed({ ...vm.timings });
      return vm;
    } finally {
      wait.end();
      await snapshot.release();
    }
  } catch (error) {
    observation().fail(error);
    throw error;
  }
}

/** `forkMany()`. */
export function forkMany(
  parent: ForkParent,
  count: number,
  options: ForkOptions | undefined,
): Promise<Vm[]> {
  const made = makeMany(parent, count, options);
  startOnceHandedOver(made, (vms) => vms);
  return made;
}

async function makeMany(
  parent: ForkParent,
  count: number,
  options: ForkOptions | undefined,
): Promise<Vm[]> {
  const startedAt = performance.now();
  const where = `${parent.kind}.forkMany()`;
  const checkedCount = checkForkCount(where, count, 1);
  const checked = checkFork(where, options);
  const observation = observe(
    'fork',
    { snapshotId: undefined, parentId: parent.id },
    'forkMany',
    () => ({ count, ...describe(checked) }),
  );
  return await observed(observation, async () => {
    await checkForkLimits(checkedCount, parent.vcpus);
    const ids = Array.from({ length: checkedCount }, () => newId('vm'));
    const snapshot = await parent.hold(checked);
    const wait = new ForkWait(checked);
    try {
      const request = { options: checked, parentId: parent.id, startedAt };
      const vms = await allOrNone(ids.map((id) => makeVm(snapshot, id, request, wait)));
      if (wait.aborted) await wait.giveUp(vms);
      return { value: vms, result: { vmIds: ids } };
    } finally {
      wait.end();
      await snapshot.release();
    }
  });
}

/** All VMs, or the first failure after those that were made are closed. */
async function allOrNone(made: readonly Promise<Vm>[]): Promise<Vm[]> {
  const outcomes = await Promise.allSettled(made);
  const failure = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failure === undefined) return await Promise.all(made);
  await closeAll(outcomes.flatMap((o) => (o.status === 'fulfilled' ? [o.value] : [])));
  throw failure.reason;
}

async function closeAll(vms: readonly Vm[]): Promise<void> {
  await Promise.allSettled(vms.map((vm) => Vm.sessionOf(vm).close()));
}

/**
 * One VM, restored and not entered; on failure nothing is left of it.
 *
 * @throws {VmError} `ERR_VM_TIMEOUT`, or why the host cannot make it.
 * @throws {AbortError} `signal` was aborted.
 */
async function makeVm(
  snapshot: SnapshotCore,
  id: string,
  { options, parentId, startedAt }: ForkRequest,
  wait: ForkWait,
): Promise<Vm> {
  const { core, info, vm: state } = snapshot;
  const { pool, hostname } = options;
  wait.check();
  const number = core.newVm();
  const postedAt = performance.now();
  const answer = core.requestUnlessNow<NativeForkTimes>((request) =>
    core.native.forkSnapshot(request, snapshot.number, number, pool, hostname ?? ''),
  );
  // The core, and where it can the guest, are at work while the rest is made here.
  const first = firstCall(snapshot, number, options, !(answer instanceof Promise));
  const session = new VmSession(
    core,
    number,
    {
      id,
      parentId,
      env: state.env,
      hostname: hostname ?? state.hostname,
      memoryBytes: info.memoryBytes,
      vcpus: info.vcpus,
    },
    { snapshot, options },
  );
  const vm = Vm.of(session);
  try {
    const times = answer instanceof Promise ? await wait.race(answer) : answer;
    session.timings = {
      pool: times.pool,
      prepareMs: postedAt - startedAt,
      createMs: times.shell / 1e6,
      restoreMs: (times.restored - times.shell) / 1e6,
      totalMs: performance.now() - startedAt,
    };
    if (first !== undefined) Vm.callFirst(vm, first);
    return vm;
  } catch (error) {
    await session.close();
    throw error;
  }
}

/** The call of the fork's input, given to the core if there is a VM and nobody else comes first. */
function firstCall(
  { core, at }: SnapshotCore,
  vm: number,
  { input, unique }: CheckedFork,
  isThere: boolean,
): FirstCall | undefined {
  if (input === undefined) return undefined;
  const call = defaultCall(input);
  const goesFirst = isThere && at === 'program' && unique === 'program';
  return {
    call,
    posted: goesFirst ? postCall(core, vm, call.input, call.maxBytes) : undefined,
  };
}

/** Deadline and signal of one call. Costs nothing for forks that are there at once. */
class ForkWait {
  readonly #options: Pick<CheckedFork, 'signal' | 'timeoutMs'>;
  #wait: Wait | undefined;

  constructor(options: Pick<CheckedFork, 'signal' | 'timeoutMs'>) {
    this.#options = options;
  }

  get aborted(): boolean {
    return this.#options.signal?.aborted === true;
  }

  /** Throws if the signal has been aborted. */
  check(): void {
    if (this.aborted) throw new AbortError(this.#options.signal?.reason);
  }

  /** Closes VMs that were there before the caller could abort, and throws. */
  async giveUp(made: readonly Vm[]): Promise<void> {
    await closeAll(made);
    this.check();
  }

  race<T>(promise: Promise<T>): Promise<T> {
    this.#wait ??= new Wait({ ...this.#options, onTimeout: forkTimeout });
    return this.#wait.race(promise);
  }

  end(): void {
    this.#wait?.end();
  }
}

function forkTimeout(timeoutMs: number): VmError {
  return new VmError({
    code: 'ERR_VM_TIMEOUT',
    message: `The fork was not there within ${timeoutMs} ms`,
  });
}

/** Lets the VMs run once the caller has them: whatever it does in that very moment comes before. */
function startOnceHandedOver<T>(made: Promise<T>, vms: (value: T) => readonly Vm[]): void {
  made.then(
    (value) => queueMicrotask(() => vms(value).forEach(startVm)),
    () => {},
  );
}

function startVm(vm: Vm): void {
  Vm.sessionOf(vm).start();
}

function describe(options: CheckedFork): Readonly<Record<string, unknown>> {
  const { start, pool, unique, input, hostname, timeoutMs } = options;
  return { start, pool, unique, inputBytes: input?.length, hostname, timeoutMs };
}
