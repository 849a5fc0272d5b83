import { AbortError, VmError } from '../../errors.js';
import type { NativeLoadedSnapshot } from '../../native.js';
import { Wait } from '../base/wait.js';
import { kvmPath } from '../boot/artifacts.js';
import { Core, RequestCancelled } from '../core.js';
import type { CheckedLoad, CheckedSave } from './fork-options.js';
import { decodeState, encodeState } from './session-state.js';
import { SnapshotCore } from './snapshot-core.js';

/** Loads a snapshot from a directory, whose path is absolute. The caller holds it. */
export async function loadSnapshot(options: CheckedLoad): Promise<SnapshotCore> {
  const { directory, verify, signal } = options;
  const core = Core.get();
  const number = core.newSnapshot();
  const loaded = await cancellable<NativeLoadedSnapshot>(core, signal, (id) =>
    core.native.loadSnapshot(id, number, kvmPath(), directory, verify),
  );
  try {
    if (signal?.aborted === true) throw new AbortError(signal.reason);
    const { id, parentId, label, vm } = decodeState(loaded.session);
    const origin = { id, parentId, label: label ?? undefined, at: loaded.at };
    return new SnapshotCore(core, number, origin, loaded, vm);
  } catch (error) {
    await core.request((id) => core.native.closeSnapshot(id, number));
    throw error;
  }
}

/** Saves a snapshot to a directory, whose path is absolute. */
export async function saveSnapshot(snapshot: SnapshotCore, options: CheckedSave): Promise<void> {
  const { directory, overwrite, signal } = options;
  const { core, number } = snapshot;
  const session = encodeState(snapshot.state);
  // What is being saved must not be released meanwhile.
  snapshot.acquire();
  try {
    await cancellable(core, signal, (id) =>
      core.native.saveSnapshot(id, number, directory, overwrite, session),
    );
  } finally {
    await snapshot.release();
  }
}

/** A request that an abort ends early; it is over when this rejects. */
async function cancellable<T>(
  core: Core,
  signal: AbortSignal | undefined,
  post: (request: number) => void,
): Promise<T> {
  const wait = new Wait({ signal });
  try {
    wait.check();
    let over = false;
    const request = core.request<T>((id) => {
      post(id);
      wait.onCut(() => {
        if (!over) core.native.cancelRequest(id);
      });
    });
    return await request.finally(() => {
      over = true;
    });
  } catch (error) {
    if (!(error instanceof RequestCancelled)) throw error;
    wait.check();
    throw new VmError({ code: 'ERR_VM_INTERNAL', message: 'The core gave up a request unasked' });
  } finally {
    wait.end();
  }
}
