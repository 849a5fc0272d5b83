// Freezing a VM: its guest is asked to stand still at a known place, and nothing is sent to it from
// then on, so that what the host knows of it and what it knows of the host are of one moment.

import { setTimeout as delay } from 'node:timers/promises';

import { describeErrno, VmError } from '../../errors.js';
import type { NativeParkPlace, NativeSnapshotInfo } from '../../native.js';
import { newId } from '../base/ids.js';
import type { Wait } from '../base/wait.js';
import { RequestCancelled } from '../core.js';
import { ParkMode } from '../protocol/protocol.js';
import type { VmSession } from '../vm/session.js';
import type { CheckedSnapshot } from './fork-options.js';
import type { VmState } from './session-state.js';
import { SnapshotCore } from './snapshot-core.js';

/**
 * A program may need something of the host on its way to its park, such as a reader of its output:
 * so long is that held back, and so long the guest gets it before the next attempt.
 */
const ATTEMPT_MS = 250;

const EBUSY = 16;

interface Frozen {
  readonly number: number;
  readonly info: NativeSnapshotInfo;
  readonly vm: VmState;
}

/**
 * Freezes a running VM, which goes on. The snapshot has one holder, the caller.
 *
 * @throws {VmError} `ERR_VM_PARK_TIMEOUT`, or why the VM cannot be worked with.
 * @throws {AbortError} `signal` was aborted.
 */
export async function freeze(session: VmSession, options: CheckedSnapshot): Promise<SnapshotCore> {
  const { at, label, timeoutMs, signal } = options;
  const deadline = performance.now() + timeoutMs;
  const wait = session.wait({ signal, timeoutMs, onTimeout: () => parkTimeout(at, timeoutMs) });
  session.core.acquire();
  try {
    const { number, info, vm } = await session.turns.run(async () => {
      for (;;) {
        session.expectRunning();
        await wait.race(session.confirmed());
        const left = Math.max(1, Math.ceil(deadline - performance.now()));
        const frozen = await attempt(session, at, left, wait);
        if (frozen !== undefined) return frozen;
        await wait.race(delay(ATTEMPT_MS));
      }
    }, wait);
    const origin = { id: newId('snap'), parentId: session.id, label, at };
    return new SnapshotCore(session.core, number, origin, info, vm);
  } finally {
    session.core.release();
    wait.end();
  }
}

/** Tries it once; `undefined` when it has to be tried again. */
async function attempt(
  session: VmSession,
  at: NativeParkPlace,
  timeoutMs: number,
  wait: Wait,
): Promise<Frozen | undefined> {
  const { core, vm, agent } = session;
  // An agent that parks late, for an attempt that was given up, must not be taken for this one.
  await wait.race(agent.parkAnswered());
  if (agent.failure !== undefined) throw agent.failure;
  const number = core.newSnapshot();
  let over = false;
  let errno = 0;
  let state: VmState | undefined;
  let timer: NodeJS.Timeout | undefined;
  const cancel = (): void => {
    if (!over) core.native.cancelSnapshot(vm);
  };
  const park = agent.park(at === 'agent' ? ParkMode.stand : ParkMode.flush, () => over);
  const replied = park.reply.then((reply) => {
    errno = reply.errno;
  });
  try {
    if (at === 'agent') {
      // The reply is the last that an agent says before it stands still.
      park.onReply = () => {
        state = session.exportState();
      };
      // Unless it says why it does not.
      replied.then(() => errno !== 0 && cancel(), cancel);
    } else {
      await wait.race(replied);
      if (!expectParked(errno)) return undefined;
      agent.gate.onceHeld(() => {
        if (!over) timer = setTimeout(cancel, ATTEMPT_MS);
      });
    }
    const frozen = core.request<NativeSnapshotInfo, Omit<Frozen, 'vm'> & { vm?: VmState }>(
      (id) => core.native.snapshotVm(id, vm, number, at, timeoutMs),
      (info) => {
        // An agent that is there for a program goes on: all that it said so far comes before this.
        const then = at === 'program' ? session.exportState() : state;
        return { number, info, ...(then !== undefined && { vm: then }) };
      },
    );
    wait.onCut(cancel);
    const { info, vm: then } = await frozen;
    if (then !== undefined && !wait.isCut) return { number, info, vm: then };
    await core.request((id) => core.native.closeSnapshot(id, number));
    wait.check();
    return undefined;
  } catch (error) {
    wait.check();
    if (!(error instanceof RequestCancelled)) throw error;
    expectParked(errno);
    return undefined;
  } finally {
    over = true;
    clearTimeout(timer);
    agent.gate.open('freeze');
  }
}

/** Whether the agent has parked; `false` when it will if it is asked again. */
function expectParked(errno: number): boolean {
  if (errno === 0) return true;
  // It still runs the hooks of a renewal that came from somewhere else.
  if (errno === EBUSY) return false;
  const { code } = describeErrno(errno);
  throw new VmError({
    code: 'ERR_VM_AGENT_PROTOCOL',
    message: `The guest agent refused to park: ${code}`,
    errno: -errno,
  });
}

function parkTimeout(at: NativeParkPlace, timeoutMs: number): VmError {
  const who = at === 'agent' ? 'The guest agent' : 'No program of the guest';
  const verb = at === 'agent' ? 'did not park' : 'parked';
  return new VmError({
    code: 'ERR_VM_PARK_TIMEOUT',
    message: `${who} ${verb} within ${timeoutMs} ms; the VM goes on`,
  });
}
