import diagnostics_channel from 'node:diagnostics_channel';

import { errorCode } from '../errors.js';

/**
 * What `node:diagnostics_channel` subscribers get, once for each public operation when it is over.
 *
 * The channels are `forklet:create`, `forklet:exec`, `forklet:fs`, `forklet:stats`,
 * `forklet:close` and `forklet:exit`. Contents never appear: no file data, no input or output of
 * commands, no values of environment variables.
 */
export interface DiagnosticsMessage {
  /** The VM's `id`. */
  readonly vmId: string;
  /** The VM's `parentId`. */
  readonly parentId: string | null;
  /** The method, such as `'exec'` or `'readFile'`. */
  readonly operation: string;
  /** Its arguments without contents. */
  readonly arguments: Readonly<Record<string, unknown>>;
  /** Whether it failed. */
  readonly outcome: 'ok' | 'error';
  /** `code` of the error, where it has one. */
  readonly errorCode?: string;
  /** What came out of it, without contents: an exit code, a byte count. */
  readonly result?: Readonly<Record<string, unknown>>;
  /** Time from the call to its end, in milliseconds. */
  readonly durationMs: number;
}

const channels = {
  create: diagnostics_channel.channel('forklet:create'),
  exec: diagnostics_channel.channel('forklet:exec'),
  fs: diagnostics_channel.channel('forklet:fs'),
  stats: diagnostics_channel.channel('forklet:stats'),
  close: diagnostics_channel.channel('forklet:close'),
  exit: diagnostics_channel.channel('forklet:exit'),
} as const;

/** One operation that is being observed. */
export interface Observation {
  succeed(result?: Readonly<Record<string, unknown>>): void;
  fail(error: unknown): void;
}

/** Starts the clock of one operation. `describe` runs only if somebody listens at the end. */
export function observe(
  channel: keyof typeof channels,
  vm: { readonly id: string; readonly parentId: string | null },
  operation: string,
  describe: () => Readonly<Record<string, unknown>>,
): Observation {
  const start = performance.now();
  const publish = (
    rest: Pick<DiagnosticsMessage, 'outcome'> & Partial<DiagnosticsMessage>,
  ): void => {
    const target = channels[channel];
    if (!target.hasSubscribers) return;
    const message: DiagnosticsMessage = {
      vmId: vm.id,
      parentId: vm.parentId,
      operation,
      arguments: describe(),
      durationMs: performance.now() - start,
      ...rest,
    };
    target.publish(message);
  };
  return {
    succeed: (result) => publish({ outcome: 'ok', ...(result !== undefined && { result }) }),
    fail: (error) => {
      const code = errorCode(error);
      publish({ outcome: 'error', ...(code !== undefined && { errorCode: code }) });
    },
  };
}
