import { VmError } from '../errors.js';
import { RequestCancelled } from './core.js';
import type { CheckedCall } from './fork-options.js';
import { Turns } from './turns.js';
import type { VmSession } from './vm-session.js';

/** Calls of one VM's parked program, one at a time. */
export class ParkedCalls {
  readonly #session: VmSession;
  readonly #turns = new Turns();

  constructor(session: VmSession) {
    this.#session = session;
  }

  /**
   * Hands the input to the program when it stands parked, and resolves with its answer.
   *
   * @throws {VmError} `ERR_VM_PROGRAM`, `ERR_VM_TIMEOUT`, or why the VM cannot be worked with.
   * @throws {AbortError} `signal` was aborted.
   */
  async call({ input, timeoutMs, signal, maxBytes }: CheckedCall): Promise<Buffer> {
    const session = this.#session;
    const { core, vm } = session;
    const wait = session.wait({ signal, timeoutMs, onTimeout: callTimeout });
    try {
      wait.check();
      session.expectRunning();
      if (!session.programIsUnique) await wait.race(session.confirmed());
      const answer = this.#turns.run(async () => {
        session.expectRunning();
        let cancel = (): void => {};
        const pending = core.request<Uint8Array>((id) => {
          core.native.callProgram(id, vm, input, maxBytes);
          cancel = () => core.native.cancelCall(id, vm);
        });
        let over = false;
        wait.onCut(() => {
          if (!over) cancel();
        });
        return await pending.finally(() => {
          over = true;
        });
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
