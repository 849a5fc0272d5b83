import { observe } from './internal/base/diagnostics.js';
import { type CheckedCall, checkCall } from './internal/snapshot/fork-options.js';
import type { FirstCall, ParkedCalls, PostedCall } from './internal/snapshot/parked-call.js';
import type { Guest } from './internal/vm/guest.js';

/** Options of `vm.parked.call()`. */
export interface ParkedCallOptions {
  /**
   * Longest time until the answer, in milliseconds, 1 to 2^31 - 1; it counts the wait for the
   * program to park, and for calls before this one.
   *
   * @defaultValue 60 000
   */
  readonly timeoutMs?: number;
  /** Gives the call up. The program goes on with it, and what it answers is thrown away. */
  readonly signal?: AbortSignal;
  /** Largest answer that is taken, in bytes, 0 to 61 184. @defaultValue 61 184 */
  readonly maxBytes?: number;
}

/**
 * The guest program that has parked itself with `forklet_park()`: it stands still in the middle of
 * its work, in a snapshot and in all forks of it, until it is called.
 */
export class ParkedProgram {
  readonly #guest: Pick<Guest, 'id' | 'parentId' | 'owner'>;
  readonly #calls: ParkedCalls;
  readonly #first: Promise<Buffer> | undefined;

  /** @internal */
  constructor(
    guest: Pick<Guest, 'id' | 'parentId' | 'owner'>,
    calls: ParkedCalls,
    first?: FirstCall,
  ) {
    this.#guest = guest;
    this.#calls = calls;
    if (first === undefined) return;
    this.#first = this.#call(first.call, first.posted);
    // Nobody has to ask for it.
    this.#first.catch(() => {});
  }

  /**
   * The answer to the `input` that the VM was forked with; `undefined` without one. Fails as
   * {@link call} does, with its default options, and never raises `unhandledRejection`.
   */
  get first(): Promise<Buffer> | undefined {
    return this.#first;
  }

  /**
   * Hands `input` to the program and resolves with what it answers when it parks again. Waits for
   * a program that is not parked yet. Calls are answered one at a time, in order.
   *
   * @param input - at most 61 184 bytes; copied at once.
   * @throws {TypeError} `input` is not a Uint8Array; unknown option, or one of a wrong type.
   * @throws {RangeError} `input` is too long, or an option is out of range.
   * @throws {VmError} `ERR_VM_PROGRAM`: the program says that the call failed (the message is its
   *   own), ended, or answered with more than `maxBytes`. `ERR_VM_TIMEOUT`. `ERR_VM_PAUSED`,
   *   `ERR_VM_RESET`, `ERR_VM_NOT_UNIQUE`, `ERR_VM_EXITED`, `ERR_VM_CLOSED`: of the VM.
   * @throws {AbortError} `signal` was aborted.
   */
  async call(input: Uint8Array, options?: ParkedCallOptions): Promise<Buffer> {
    return await this.#call(checkCall(input, options));
  }

  async #call(call: CheckedCall, posted?: PostedCall): Promise<Buffer> {
    const { timeoutMs, maxBytes } = call;
    const inputBytes = call.input.length;
    const observation = observe('parked', this.#guest, 'parked.call', () => ({
      inputBytes,
      timeoutMs,
      maxBytes,
    }));
    try {
      const answer = await this.#calls.call(call, posted);
      observation.succeed({ bytes: answer.length });
      return answer;
    } catch (error) {
      observation.fail(error);
      throw error;
    }
  }
}
