import { VmError } from '../../errors.js';
import type { NativeParkPlace, NativeSnapshotInfo } from '../../native.js';
import type { Core } from '../core.js';
import type { SnapshotState, VmState } from './session-state.js';

/** How a snapshot came about. */
export interface SnapshotOrigin {
  readonly id: string;
  readonly parentId: string | null;
  readonly label: string | undefined;
  readonly at: NativeParkPlace;
}

/**
 * A frozen VM behind the public handle. It is kept while the handle is open and while there are VMs
 * that came from it, so that they can be reset to it.
 */
export class SnapshotCore implements SnapshotOrigin {
  readonly core: Core;
  /** Names it in calls of the addon. */
  readonly number: number;
  readonly id: string;
  readonly parentId: string | null;
  readonly label: string | undefined;
  readonly at: NativeParkPlace;
  readonly info: NativeSnapshotInfo;
  readonly vm: VmState;
  #holders = 1;
  #released: Promise<void> | undefined;

  constructor(
    core: Core,
    number: number,
    origin: SnapshotOrigin,
    info: NativeSnapshotInfo,
    vm: VmState,
  ) {
    this.core = core;
    this.number = number;
    this.id = origin.id;
    this.parentId = origin.parentId;
    this.label = origin.label;
    this.at = origin.at;
    this.info = info;
    this.vm = vm;
  }

  get state(): SnapshotState {
    return { id: this.id, parentId: this.parentId, label: this.label ?? null, vm: this.vm };
  }

  /** Adds a holder. @throws {VmError} `ERR_VM_CLOSED`: there is none any more. */
  acquire(): void {
    if (this.#holders === 0) throw closedSnapshot();
    this.#holders++;
  }

  /** Takes a holder away; with the last one the snapshot is released, which this waits for. */
  async release(): Promise<void> {
    if (--this.#holders > 0) return;
    this.#released ??= this.core.request((id) => this.core.native.closeSnapshot(id, this.number));
    await this.#released;
  }

  /** Keeps so many forks ready. */
  async prewarm(count: number): Promise<void> {
    await this.core.request((id) => this.core.native.prewarmSnapshot(id, this.number, count));
  }
}

export function closedSnapshot(): VmError {
  return new VmError({ code: 'ERR_VM_CLOSED', message: 'The snapshot was closed' });
}
