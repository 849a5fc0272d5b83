// Options of connections to the guest's ports.

import type { ConnectOptions, ForwardOptions, WaitForPortOptions } from '../../connections.js';
import {
  checkBoolean,
  checkInteger,
  checkOptions,
  checkSignal,
  checkTimeout,
  show,
} from '../base/validate.js';
import { highWaterMarkOf } from '../fs/options.js';
import { LONGEST_LOOK_MS } from '../protocol/protocol.js';

const DEFAULT_CONNECT_TIMEOUT_MS = 30_000;
const DEFAULT_WAIT_TIMEOUT_MS = 60_000;
const MAX_PORT = 65_535;

export interface CheckedConnect {
  readonly port: number;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
  readonly highWaterMark: number;
  readonly allowHalfOpen: boolean;
}

export interface CheckedWaitForPort {
  readonly port: number;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
  readonly intervalMs: number;
}

export type CheckedForward = Required<ForwardOptions>;

export function checkConnect(port: unknown, options: ConnectOptions | undefined): CheckedConnect {
  const where = 'vm.connect()';
  const known = ['timeoutMs', 'signal', 'highWaterMark', 'allowHalfOpen'] as const;
  const { timeoutMs, signal, highWaterMark, allowHalfOpen } = checkOptions(where, options, known);
  return {
    port: checkPort(where, port),
    timeoutMs: timeoutOf(timeoutMs, DEFAULT_CONNECT_TIMEOUT_MS),
    signal: signalOf(signal),
    highWaterMark: highWaterMarkOf(highWaterMark),
    allowHalfOpen:
      allowHalfOpen === undefined ? false : checkBoolean('allowHalfOpen', allowHalfOpen),
  };
}

export function checkWaitForPort(
  port: unknown,
  options: WaitForPortOptions | undefined,
): CheckedWaitForPort {
  const where = 'vm.waitForPort()';
  const known = ['timeoutMs', 'signal', 'intervalMs'] as const;
  const { timeoutMs, signal, intervalMs } = checkOptions(where, options, known);
  return {
    port: checkPort(where, port),
    timeoutMs: timeoutOf(timeoutMs, DEFAULT_WAIT_TIMEOUT_MS),
    signal: signalOf(signal),
    intervalMs: intervalMs === undefined ? LONGEST_LOOK_MS : checkTimeout('intervalMs', intervalMs),
  };
}

export function checkForward(options: ForwardOptions): CheckedForward {
  const known = ['guestPort', 'hostPort', 'host'] as const;
  const {
    guestPort,
    hostPort = 0,
    host = '127.0.0.1',
  } = checkOptions('vm.forward()', options, known);
  if (host !== '127.0.0.1' && host !== '::1') {
    throw new RangeError(
      `Option "host" must be '127.0.0.1' or '::1', since forwards are for this host only; ` +
        `got ${show(host)}`,
    );
  }
  return {
    guestPort: checkInteger('guestPort', guestPort, { min: 1, max: MAX_PORT }),
    hostPort: checkInteger('hostPort', hostPort, { min: 0, max: MAX_PORT }),
    host,
  };
}

function checkPort(where: string, port: unknown): number {
  if (typeof port !== 'number') {
    throw new TypeError(`The port of ${where} must be a number; got ${show(port)}`);
  }
  if (!Number.isInteger(port) || port < 1 || port > MAX_PORT) {
    throw new RangeError(
      `The port of ${where} must be an integer from 1 to ${MAX_PORT}; got ${show(port)}`,
    );
  }
  return port;
}

function timeoutOf(value: unknown, byDefault: number): number {
  return value === undefined ? byDefault : checkTimeout('timeoutMs', value);
}

function signalOf(value: unknown): AbortSignal | undefined {
  return value === undefined ? undefined : checkSignal('signal', value);
}
