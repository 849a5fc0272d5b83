import { AbortError, VmError } from '../errors.js';
import type { NativeForkTimes } from '../native.js';
import { type CheckedFork, checkCall } from './fork-options.js';
import { type FirstCall, postCall } from './parked-call.js';
import type { SnapshotCore } from './snapshot-core.js';
import { VmSession } from './vm-session.js';
import { Wait } from './wait.js';

export interface ForkRequest {
  readonly options: CheckedFork;
  /** What the forks say that they come from. */
  readonly parentId: string;
  /** `performance.now()` of the call. */
  readonly startedAt: number;
}

/** A VM that was made, and the call that it was made with. */
export interface Fork {
  readonly session: VmSession;
  readonly first: FirstCall | undefined;
}

/**
 * Makes VMs from a snapshot, restored and not entered: all of them, or none if one fails.
 *
 * @throws {VmError} `ERR_VM_TIMEOUT`, or why the host cannot make one.
 * @throws {AbortError} `signal` was aborted.
 */
export async function fork(
  snapshot: SnapshotCore,
  ids: readonly string[],
  request: ForkRequest,
): Promise<Fork[]> {
  const { signal, timeoutMs } = request.options;
  if (signal?.aborted) throw new AbortError(signal.reason);
  let wait: Wait | undefined;
  // Only forks that are not there at once are waited for.
  const waiting = (): Wait => {
    wait ??= new Wait({ signal, timeoutMs, onTimeout: forkTimeout });
    return wait;
  };
  try {
    const forks = ids.map((id) => forkOne(snapshot, id, request, waiting));
    const outcomes = await Promise.allSettled(forks);
    const failure = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failure === undefined) return await Promise.all(forks);
    const made = outcomes.flatMap((outcome) =>
      outcome.status === 'fulfilled' ? [outcome.value.session.close()] : [],
    );
    await Promise.allSettled(made);
    throw failure.reason;
  } finally {
    wait?.end();
  }
}

/** One fork; on failure nothing is left of it. */
async function forkOne(
  snapshot: SnapshotCore,
  id: string,
  { options, parentId, startedAt }: ForkRequest,
  waiting: () => Wait,
): Promise<Fork> {
  const { core, info, vm: state } = snapshot;
  const { pool, hostname } = options;
  const vm = core.newVm();
  const postedAt = performance.now();
  const answer = core.requestUnlessNow<NativeForkTimes>((request) =>
    core.native.forkSnapshot(request, snapshot.number, vm, pool, hostname ?? ''),
  );
  // The core, and where it can the guest, are at work while the rest is made here.
  const first = firstCall(snapshot, vm, options, !(answer instanceof Promise));
  const session = new VmSession(
    core,
    vm,
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
  try {
    const times = answer instanceof Promise ? await waiting().race(answer) : answer;
    session.timings = {
      pool: times.pool,
      prepareMs: postedAt - startedAt,
      createMs: times.shell / 1e6,
      restoreMs: (times.restored - times.shell) / 1e6,
      totalMs: performance.now() - startedAt,
    };
    return { session, first };
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
  const call = checkCall(input, undefined);
  const goesFirst = isThere && at === 'program' && unique === 'program';
  return {
    call,
    posted: goesFirst ? postCall(core, vm, call.input, call.maxBytes) : undefined,
  };
}

function forkTimeout(timeoutMs: number): VmError {
  return new VmError({
    code: 'ERR_VM_TIMEOUT',
    message: `The fork was not there within ${timeoutMs} ms`,
  });
}
