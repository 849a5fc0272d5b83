import { VmError } from '../../errors.js';
import type { NativeBootTimes, NativeVmConfig } from '../../native.js';
import type { BootTimings } from '../../vm-types.js';
import { encodeConfigure } from '../protocol/protocol.js';
import type { VmSession } from '../vm/session.js';

export interface BootRequest {
  readonly config: NativeVmConfig;
  readonly bootTimeoutMs: number;
  readonly signal: AbortSignal | undefined;
  /** `performance.now()` of the call. */
  readonly startedAt: number;
}

/** Boots until the agent is configured. On failure the VM is gone when this rejects. */
export async function boot(session: VmSession, request: BootRequest): Promise<void> {
  const { bootTimeoutMs, signal, startedAt } = request;
  const left = Math.max(0, bootTimeoutMs - (performance.now() - startedAt));
  const wait = session.wait({
    signal,
    timeoutMs: left,
    onTimeout: () => bootTimeout(session, bootTimeoutMs),
  });
  // Boot has no operation at first, but somebody waits for it.
  session.core.acquire();
  try {
    session.timings = await wait.race(run(session, request));
  } catch (error) {
    await session.close();
    throw error;
  } finally {
    session.core.release();
    wait.end();
  }
}

async function run(
  { core, vm, agent, hostname }: VmSession,
  { config, startedAt }: BootRequest,
): Promise<BootTimings> {
  const postedAt = performance.now();
  const times = await core.request<NativeBootTimes>((id) => core.native.createVm(id, vm, config));
  await agent.hello;
  const helloAt = performance.now();
  const configured = agent.begin('other', ({ id }) => encodeConfigure(id, { hostname }));
  const reply = await configured.reply;
  if (reply.errno !== 0) {
    throw new VmError({
      code: 'ERR_VM_AGENT_PROTOCOL',
      message: `The guest agent refused its configuration: errno ${reply.errno}`,
      errno: -reply.errno,
    });
  }
  const readyAt = performance.now();
  const ms = (from: number, to: number): number => (to - from) / 1e6;
  return {
    prepareMs: postedAt - startedAt,
    createMs: ms(0, times.vmCreated),
    loadMs: ms(times.vmCreated, times.kernelLoaded),
    startMs: ms(times.kernelLoaded, times.entered),
    guestMs: helloAt - postedAt - ms(0, times.entered),
    configureMs: readyAt - helloAt,
    totalMs: readyAt - startedAt,
  };
}

function bootTimeout(session: VmSession, bootTimeoutMs: number): VmError {
  return new VmError({
    code: 'ERR_VM_BOOT_TIMEOUT',
    message:
      `The guest agent did not answer within ${bootTimeoutMs} ms; the VM was closed. ` +
      'The end of its console is in `detail`; raise bootTimeoutMs if it was still at work.',
    detail: session.consoleTail(),
  });
}
