// Forks as callers get them, of a snapshot or of a running VM.

import type { ForkOptions } from '../snapshot.js';
import { Vm } from '../vm.js';
import { observe, observed } from './diagnostics.js';
import { fork } from './fork.js';
import { checkForkLimits } from './fork-limits.js';
import { type CheckedFork, checkFork, checkForkCount } from './fork-options.js';
import { newId } from './ids.js';
import type { SnapshotCore } from './snapshot-core.js';

/** What is forked. */
export interface ForkParent {
  readonly id: string;
  /** For the message of wrong options, such as `'snapshot'`. */
  readonly kind: 'vm' | 'snapshot';
  readonly vcpus: number;
  /** The frozen machine, held once for the caller. */
  hold(options: CheckedFork): Promise<SnapshotCore>;
}

/** `fork()`. */
export function forkOne(parent: ForkParent, options: ForkOptions | undefined): Promise<Vm> {
  return handOver(makeOne(parent, options), (vm) => [vm]);
}

async function makeOne(parent: ForkParent, options: ForkOptions | undefined): Promise<Vm> {
  const startedAt = performance.now();
  const checked = checkFork(`${parent.kind}.fork()`, options);
  const id = newId('vm');
  const observation = observe('fork', { id, parentId: parent.id }, 'fork', () => describe(checked));
  return await observed(observation, async () => {
    const [vm] = (await makeVms(parent, [id], checked, startedAt)) as [Vm];
    return { value: vm, result: { ...vm.timings } };
  });
}

/** `forkMany()`. */
export function forkMany(
  parent: ForkParent,
  count: number,
  options: ForkOptions | undefined,
): Promise<Vm[]> {
  return handOver(makeMany(parent, count, options), (vms) => vms);
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
    const vms = await makeVms(parent, ids, checked, startedAt);
    return { value: vms, result: { vmIds: ids } };
  });
}

async function makeVms(
  parent: ForkParent,
  ids: readonly string[],
  options: CheckedFork,
  startedAt: number,
): Promise<Vm[]> {
  const snapshot = await parent.hold(options);
  try {
    const forks = await fork(snapshot, ids, { options, parentId: parent.id, startedAt });
    return forks.map(({ session, first }) => Vm.of(session, first));
  } finally {
    await snapshot.release();
  }
}

/** Lets the VMs run once the caller has them: whatever it does in that very moment comes before. */
function handOver<T>(made: Promise<T>, vms: (value: T) => readonly Vm[]): Promise<T> {
  made.then(
    (value) => queueMicrotask(() => vms(value).forEach(startVm)),
    () => {},
  );
  return made;
}

function startVm(vm: Vm): void {
  Vm.sessionOf(vm).start();
}

function describe(options: CheckedFork): Readonly<Record<string, unknown>> {
  const { start, pool, unique, input, hostname, timeoutMs } = options;
  return { start, pool, unique, inputBytes: input?.length, hostname, timeoutMs };
}
