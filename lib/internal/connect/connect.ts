// What `vm.connect()` and `vm.waitForPort()` do.

import type { ConnectOptions, WaitForPortOptions } from '../../connections.js';
import { portError, VmError } from '../../errors.js';
import type { Operation } from '../agent/connection.js';
import { Deferred } from '../base/deferred.js';
import { observe, observed } from '../base/diagnostics.js';
import { Wait } from '../base/wait.js';
import { brokenReply } from '../fs/request.js';
import { Cancel, encodeConnect, encodeWaitPort } from '../protocol/protocol.js';
import type { Guest } from '../vm/guest.js';
import { GuestConnection } from './guest-connection.js';
import { type CheckedConnect, checkConnect, checkWaitForPort } from './options.js';

/** Resolves when the connection is there. */
export async function connect(
  guest: Guest,
  port: number,
  options?: ConnectOptions,
): Promise<GuestConnection> {
  const checked = checkConnect(port, options);
  const { timeoutMs, highWaterMark } = checked;
  const observation = observe('connect', guest, 'connect', () => ({
    port,
    timeoutMs,
    highWaterMark,
  }));
  try {
    const operation = await open(guest, checked);
    return new GuestConnection(operation, observation, checked);
  } catch (error) {
    observation.fail(error);
    throw error;
  }
}

async function open(guest: Guest, options: CheckedConnect): Promise<Operation> {
  const { port, timeoutMs, signal, highWaterMark } = options;
  const wait = new Wait({
    signal,
    timeoutMs,
    onTimeout: () => timeout(`Port ${port} of the guest took no connection`, timeoutMs),
  });
  let operation: Operation | undefined;
  try {
    wait.check();
    operation = guest.agent.begin('connect', ({ id, output }) =>
      encodeConnect(id, port, output.takeInitialLimit()),
    );
    operation.output.grant(highWaterMark);
    const errno = await wait.race(connected(operation));
    if (errno !== 0) throw portError(errno, 'connect', port);
    return operation;
  } catch (error) {
    // Nobody has to wait for the guest to let go.
    operation?.cancel(Cancel.reset);
    throw error;
  } finally {
    wait.end();
  }
}

/** Resolves with 0 when the connection is there, or with the errno of what went wrong. */
function connected(operation: Operation): Promise<number> {
  const answer = new Deferred<number>();
  operation.onConnected = () => answer.resolve(0);
  operation.reply.then(
    ({ errno }) => {
      if (errno === 0) answer.reject(brokenReply('the end of a connection that never was'));
      else answer.resolve(errno);
    },
    (error: unknown) => answer.reject(error),
  );
  return answer.promise;
}

/** Resolves when something listens at the port. */
export async function waitForPort(
  guest: Guest,
  port: number,
  options?: WaitForPortOptions,
): Promise<void> {
  const checked = checkWaitForPort(port, options);
  const { timeoutMs, signal, intervalMs } = checked;
  const observation = observe('connect', guest, 'waitForPort', () => ({
    port,
    timeoutMs,
    intervalMs,
  }));
  await observed(observation, async () => {
    const wait = new Wait({
      signal,
      timeoutMs,
      onTimeout: () => timeout(`Nothing listened at port ${port} of the guest`, timeoutMs),
    });
    let operation: Operation | undefined;
    try {
      wait.check();
      operation = guest.agent.begin('other', ({ id }) => encodeWaitPort(id, port, intervalMs));
      const { errno } = await wait.race(operation.reply);
      if (errno !== 0) throw portError(errno, 'waitForPort', port);
      return { value: undefined };
    } catch (error) {
      operation?.cancel();
      throw error;
    } finally {
      wait.end();
    }
  });
}

function timeout(what: string, timeoutMs: number): VmError {
  return new VmError({ code: 'ERR_VM_TIMEOUT', message: `${what} within ${timeoutMs} ms` });
}
