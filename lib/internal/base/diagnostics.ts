import diagnostics_channel from 'node:diagnostics_channel';

import { errorCode } from '../../errors.js';

/**
 * What `node:diagnostics_channel` subscribers get, once for each public operation when it is over.
 *
 * The channels are `forklet:create`, `forklet:exec`, `forklet:fs`, `forklet:connect`,
 * `forklet:forward`, `forklet:parked`,
 * `forklet:snapshot`, `forklet:fork`, `forklet:reset`, `forklet:pause`, `forklet:prewarm`,
 * `forklet:save`, `forklet:load`, `forklet:ensure`, `forklet:stats`, `forklet:close` and
 * `forklet:exit`. Contents never appear: no file data, no input or output of commands, connections
 * or parked programs, no values of environment variables.
 */
export interface DiagnosticsMessage {
  /** The VM's `id`; `null` for what concerns a snapshot, or several VMs. */
  readonly vmId: string | null;
  /** The snapshot's `id`, for what concerns one. */
  readonly snapshotId?: string;
  /** The `parentId` of the VM or else of the snapshot. */
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
  connect: diagnostics_channel.channel('forklet:connect'),
  forward: diagnostics_channel.channel('forklet:forward'),
  parked: diagnostics_channel.channel('forklet:parked'),
  snapshot: diagnostics_channel.channel('forklet:snapshot'),
  fork: diagnostics_channel.channel('forklet:fork'),
  reset: diagnostics_channel.channel('forklet:reset'),
  pause: diagnostics_channel.channel('forklet:pause'),
  prewarm: diagnostics_channel.channel('forklet:prewarm'),
  save: diagnostics_channel.channel('forklet:save'),
  load: diagnostics_channel.channel('forklet:load'),
  ensure: diagnostics_channel.channel('forklet:ensure'),
  stats: diagnostics_channel.channel('forklet:stats'),
  close: diagnostics_channel.channel('forklet:close'),
  exit: diagnostics_channel.channel('forklet:exit'),
} as const;

/** One operation that is being observed. */
export interface Observation {
  succeed(result?: Readonly<Record<string, unknown>>): void;
  fail(error: unknown): void;
}

/** What an operation concerns: a VM, a snapshot, or what does not exist yet. */
export type ObservedSubject =
  | { readonly id: string; readonly parentId: string | null }
  | { readonly snapshotId: string | undefined; readonly parentId: string | null };

/**
 * Starts the clock of one operation, unless `startedAt` has. `describe` runs only if somebody
 * listens at the end.
 */
export function observe(
  channel: keyof typeof channels,
  subject: ObservedSubject,
  operation: string,
  describe: () => Readonly<Record<string, unknown>>,
  startedAt = performance.now(),
): Observation {
  const publish = (
    rest: Pick<DiagnosticsMessage, 'outcome'> & Partial<DiagnosticsMessage>,
  ): void => {
    const target = channels[channel];
    if (!target.hasSubscribers) return;
    const message: DiagnosticsMessage = {
      ...identify(subject),
      operation,
      arguments: describe(),
      durationMs: performance.now() - startedAt,
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

function identify(
  subject: ObservedSubject,
): Pick<DiagnosticsMessage, 'vmId' | 'snapshotId' | 'parentId'> {
  const { parentId } = subject;
  if ('id' in subject) return { vmId: subject.id, parentId };
  const { snapshotId } = subject;
  return { vmId: null, ...(snapshotId !== undefined && { snapshotId }), parentId };
}

/** Observes an operation from its start to its end. */
export async function observed<T>(
  observation: Observation,
  run: () => Promise<{ value: T; result?: Readonly<Record<string, unknown>> }>,
): Promise<T> {
  try {
    const { value, result } = await run();
    observation.succeed(result);
    return value;
  } catch (error) {
    observation.fail(error);
    throw error;
  }
}
