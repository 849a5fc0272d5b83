/**
 * Why frames to the guest wait.
 *
 * - `'freeze'`: from the request to park until the VM is frozen.
 * - `'renewal'`: a fork has not confirmed yet that it is unique.
 * - `'pause'`: the vCPUs stand still.
 * - `'reset'`: the VM is being put back to a snapshot.
 */
export type GateReason = 'freeze' | 'renewal' | 'pause' | 'reset';

/** Holds back everything that a connection would send, as long as there is a reason to. */
export class AgentGate {
  readonly #reasons = new Set<GateReason>();
  readonly #onOpen: () => void;
  #onHeld: (() => void)[] = [];
  #waiting = false;

  /** `onOpen` is called when the last reason is gone. */
  constructor(onOpen: () => void) {
    this.#onOpen = onOpen;
  }

  get closed(): boolean {
    return this.#reasons.size > 0;
  }

  close(reason: GateReason): void {
    this.#reasons.add(reason);
  }

  open(reason: GateReason): void {
    if (!this.#reasons.delete(reason) || this.closed) return;
    this.#waiting = false;
    this.#onOpen();
  }

  /** Calls back once, as soon as a frame has to wait. */
  onceHeld(listener: () => void): void {
    if (this.#waiting) listener();
    else this.#onHeld.push(listener);
  }

  /** @internal A frame has to wait. */
  held(): void {
    this.#waiting = true;
    const listeners = this.#onHeld;
    if (listeners.length === 0) return;
    this.#onHeld = [];
    for (const listener of listeners) listener();
  }
}
