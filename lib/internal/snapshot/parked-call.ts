import { VmError } from '../../errors.js';
import { Turns } from '../base/turns.js';
import { type Core, RequestCancelled } from '../core.js';
import type { VmSession } from '../vm/session.js';
import type { CheckedCall } from './fork-options.js';

/** A call that the core has. */
export interface PostedCall {
  readonly answer: Promise<Uint8Array>;
  /** Gives it up, if it has not been answered. */
  cancel(): void;
}

/** The call that a VM is forked with. */
export interface FirstCall {
  readonly call: CheckedCall;
  /** Absent while the core does not have it. */
  readonly posted: PostedCall | undefined;
}

export function postCall(core: Core, vm: number, input: Uint8Array, maxBytes: number): PostedCall {
  let request: number | undefined;
  const answer = core.request<Uint8Array>((id) => {
    core.native.callProgram(id, vm, input, maxBytes);
    request = id;
  });
  // Whoever it is for may be gone.
  answer.catch(() => {});
  return {
    answer,
    // Of one that was answered the core knows nothing any more.
    cancel: () => {
      if (request !== undefined) core.native.cancelCall(request, vm);
    },
  };
}

/** Calls of one VM's parked program, one at a time. */
export class ParkedCalls {
  readonly #session: VmSession;
  readonly #turns = new Turns();

  constructor(session: VmSession) {
    this.#session = session;
  }

  /**
   * Hands the input to the program when it stands parked, and resolves with its answer. `posted` is
   * the VM's first call, when the core has it already.
   *
   * @throws {VmError} `ERR_VM_PROGRAM`, `ERR_VM_TIMEOUT`, or why the VM cannot be worked with.
   * @throws {AbortError} `signal` was aborted.
   */
  async call(call: CheckedCall, posted?: PostedCall): Promise<Buffer> {
    const { input, timeoutMs, signal, maxBytes } = call;
    const session = this.#session;
    const { core, vm } = session;
    const wait = session.wait({ signal, timeoutMs, onTimeout: callTimeout });
    try {
      wait.check();
      session.expectRunning();
      if (!session.programIsUnique) await wait.race(session.confirmed());
      const answer = this.#turns.run(async () => {
        session.expectRunning();
        const pending = posted ?? postCall(core, vm, input, maxBytes);
        wait.onCut(pending.cancel);
        return await pending.answer;
      }, wait);
      // Whoever gives up is told at once; the next call waits until the core has heard of it.
      const { buffer, byteOffset, byteLength } = await wait.race(answer);
      return Buffer.from(buffer, byteOffset, byteLength);
    } catch (error) {
      if (error instanceof RequestCancelled) wait.check();
      throw error;
    } finally {
      wait.end();
    }
  }
}

function callTimeout(timeoutMs: number): VmError {
  return new VmError({
    code: 'ERR_VM_TIMEOUT',
    message: `The program did not answer within ${timeoutMs} ms`,
  });
}
