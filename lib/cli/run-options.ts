import { parseArgs } from 'node:util';

import type { ForwardOptions } from '../connections.js';
import type { ExecOptions } from '../exec.js';
import type { VmOptions } from '../options.js';
import { GiB, MiB } from '../units.js';
import { UsageError } from './exit-codes.js';

export interface RunArguments {
  readonly vm: VmOptions;
  readonly exec: Pick<ExecOptions, 'cwd' | 'timeoutMs' | 'user'>;
  readonly forwards: readonly ForwardOptions[];
  readonly command: readonly string[];
  readonly console: boolean;
}

const SUFFIXES: Readonly<Record<string, number>> = { '': 1, K: 1024, M: MiB, G: GiB };

function parseSize(text: string): number {
  const match = /^(\d+)(?:([KMG])(?:i?B)?)?$/i.exec(text);
  const unit = SUFFIXES[(match?.[2] ?? '').toUpperCase()];
  if (match === null || unit === undefined) {
    throw new UsageError(`--memory takes bytes, or a number with K, M or G; got '${text}'`);
  }
  return Number(match[1]) * unit;
}

function parseNumber(option: string, text: string): number {
  if (!/^\d+(\.\d+)?$/.test(text)) throw new UsageError(`${option} takes a number; got '${text}'`);
  return Number(text);
}

function parseMilliseconds(option: string, text: string): number {
  return Math.round(parseNumber(option, text) * 1000);
}

function parseEnvironment(assignments: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    assignments.map((assignment) => {
      const equals = assignment.indexOf('=');
      if (equals < 1) throw new UsageError(`--env takes NAME=VALUE; got '${assignment}'`);
      return [assignment.slice(0, equals), assignment.slice(equals + 1)];
    }),
  );
}

function parseForward(text: string): ForwardOptions {
  const match = /^(\d+):(\d+)$/.exec(text);
  const [hostPort, guestPort] = (match?.slice(1) ?? []).map(Number);
  const isPort = (port: number | undefined): boolean =>
    port !== undefined && port > 0 && port < 65_536;
  if (hostPort === undefined || guestPort === undefined || ![hostPort, guestPort].every(isPort)) {
    throw new UsageError(`--forward takes two ports, HOST:GUEST; got '${text}'`);
  }
  return { hostPort, guestPort };
}

/** Options of every command that boots a VM, for parseArgs(). */
export const VM_OPTIONS = {
  memory: { type: 'string' },
  vcpus: { type: 'string' },
  kernel: { type: 'string' },
  modules: { type: 'string' },
  'kernel-args': { type: 'string' },
  root: { type: 'string' },
  env: { type: 'string', multiple: true },
  hostname: { type: 'string' },
  'boot-timeout': { type: 'string' },
} as const;

type VmValues = {
  readonly [Name in keyof typeof VM_OPTIONS]?:
    | ((typeof VM_OPTIONS)[Name] extends { multiple: true } ? string[] : string)
    | undefined;
};

export function toVmOptions(values: VmValues): VmOptions {
  const { memory, vcpus, kernel, modules, root, env, hostname } = values;
  const kernelArgs = values['kernel-args'];
  const bootTimeout = values['boot-timeout'];
  return {
    ...(memory !== undefined && { memoryBytes: parseSize(memory) }),
    ...(vcpus !== undefined && { vcpus: parseNumber('--vcpus', vcpus) }),
    ...(kernel !== undefined && { kernel }),
    ...(modules !== undefined && { modules }),
    ...(kernelArgs !== undefined && { kernelArgs }),
    ...(root !== undefined && { root }),
    ...(env !== undefined && { env: parseEnvironment(env) }),
    ...(hostname !== undefined && { hostname }),
    ...(bootTimeout !== undefined && {
      bootTimeoutMs: parseMilliseconds('--boot-timeout', bootTimeout),
    }),
  };
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        ...VM_OPTIONS,
        cwd: { type: 'string' },
        user: { type: 'string' },
        timeout: { type: 'string' },
        forward: { type: 'string', multiple: true },
        console: { type: 'boolean', default: false },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** A name of the guest's, or a number. */
function parseUser(text: string): string | number {
  return /^\d+$/.test(text) ? Number(text) : text;
}

/** Reads what is in front of the command. */
function toArguments(args: readonly string[], command: readonly string[]): RunArguments {
  const { values, positionals } = parse(args);
  if (positionals.length > 0) {
    throw new UsageError(`Unexpected '${positionals[0]}'; the command goes behind '--'`);
  }
  const { cwd, timeout, user, forward = [] } = values;
  return {
    vm: toVmOptions(values),
    exec: {
      ...(cwd !== undefined && { cwd }),
      ...(user !== undefined && { user: parseUser(user) }),
      ...(timeout !== undefined && { timeoutMs: parseMilliseconds('--timeout', timeout) }),
    },
    forwards: forward.map(parseForward),
    command,
    console: values.console,
  };
}

/**
 * Splits at the first `--`, so that no option of the command is ever taken for one of ours.
 */
export function parseRunArguments(args: readonly string[]): RunArguments {
  const separator = args.indexOf('--');
  if (separator < 0) throw new UsageError("The command goes behind '--'");
  const command = args.slice(separator + 1);
  if (command.length === 0) throw new UsageError("No command behind '--'");
  return toArguments(args.slice(0, separator), command);
}

/** The same, where a command may be left out. */
export function parseShellArguments(args: readonly string[]): RunArguments {
  if (args.includes('--')) return parseRunArguments(args);
  return toArguments(args, ['/bin/sh']);
}
