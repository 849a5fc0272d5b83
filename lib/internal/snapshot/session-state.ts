// What JavaScript knows of a frozen VM, as it is saved with a snapshot. A file that is loaded is as
// hostile as a guest: everything in it is checked before any of it is used.

import { VmError } from '../../errors.js';
import type { AgentState, CommandState } from '../agent/state.js';
import type { IncomingState, OutgoingState } from '../agent/streams.js';
import {
  FrameDecoder,
  MAX_OPERATIONS,
  MAX_PAYLOAD_BYTES,
  ProtocolError,
} from '../protocol/protocol.js';
import { MAX_LABEL_LENGTH } from './fork-options.js';

/** What a fork takes over from the VM that was frozen. */
export interface VmState {
  /** Environment of every command. */
  readonly env: Readonly<Record<string, string>>;
  readonly hostname: string;
  readonly agent: AgentState;
}

/** Everything that is known of a snapshot besides the machine itself. */
export interface SnapshotState {
  readonly id: string;
  readonly parentId: string | null;
  readonly label: string | null;
  readonly vm: VmState;
}

const STATE_VERSION = 1;

/** Largest saved state, in bytes; more than the largest that can come about. */
export const MAX_STATE_BYTES = 64 * 1024 * 1024;

const MAX_ENVIRONMENT_BYTES = 2 * 1024 * 1024;
const MAX_VARIABLES = 65_536;
/** An offset plus a window stays a safe integer. */
const MAX_OFFSET = 2 ** 52;
/** More than the largest window that a reader of this library opens. */
const MAX_WINDOW_BYTES = 2 * 1024 * 1024;
const MAX_TEXT_LENGTH = 8192;

export function encodeState(state: SnapshotState): Buffer {
  return Buffer.from(JSON.stringify({ version: STATE_VERSION, ...state }));
}

/** @throws {VmError} `ERR_VM_BAD_SNAPSHOT`. */
export function decodeState(bytes: Uint8Array): SnapshotState {
  try {
    if (bytes.length > MAX_STATE_BYTES) throw new StateError('state', 'is too large');
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return toSnapshotState(JSON.parse(text));
  } catch (cause) {
    throw new VmError({
      code: 'ERR_VM_BAD_SNAPSHOT',
      message: `The snapshot's state cannot be used: ${(cause as Error).message}`,
      cause,
    });
  }
}

class StateError extends Error {
  override readonly name = 'StateError';

  constructor(path: string, problem: string) {
    super(`${path} ${problem}`);
  }
}

type Fields = Readonly<Record<string, unknown>>;

function fields(path: string, value: unknown): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new StateError(path, 'is not an object');
  }
  return value as Fields;
}

function text(path: string, value: unknown, maxLength = MAX_TEXT_LENGTH): string {
  if (typeof value !== 'string') throw new StateError(path, 'is not a string');
  if (value.length > maxLength) throw new StateError(path, 'is too long');
  if (value.includes('\0')) throw new StateError(path, 'contains NUL');
  return value;
}

/** A name of ours: letters, digits, and what stands between them. */
function name(path: string, value: unknown): string {
  const checked = text(path, value, 256);
  if (!/^[\w./-]+$/.test(checked)) throw new StateError(path, 'is not a name');
  return checked;
}

function orNull<T>(value: unknown, check: (value: unknown) => T): T | null {
  return value === null ? null : check(value);
}

function integer(path: string, value: unknown, min: number, max: number): number {
  if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max) {
    throw new StateError(path, `is not an integer from ${min} to ${max}`);
  }
  return value as number;
}

function flag(path: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw new StateError(path, 'is not true or false');
  return value;
}

function list<T>(
  path: string,
  value: unknown,
  maxLength: number,
  check: (path: string, value: unknown) => T,
): T[] {
  if (!Array.isArray(value)) throw new StateError(path, 'is not an array');
  if (value.length > maxLength) throw new StateError(path, 'is too long');
  return value.map((item, index) => check(`${path}[${index}]`, item));
}

function toSnapshotState(value: unknown): SnapshotState {
  const { version, id, parentId, label, vm } = fields('state', value);
  if (version !== STATE_VERSION) {
    throw new StateError('version', `is ${JSON.stringify(version)} instead of ${STATE_VERSION}`);
  }
  return {
    id: name('id', id),
    parentId: orNull(parentId, (given) => name('parentId', given)),
    label: orNull(label, (given) => text('label', given, MAX_LABEL_LENGTH)),
    vm: toVmState(vm),
  };
}

function toVmState(value: unknown): VmState {
  const { env, hostname, agent } = fields('vm', value);
  return {
    env: toEnvironment(env),
    hostname: text('vm.hostname', hostname, 64),
    agent: toAgentState(agent),
  };
}

function toEnvironment(value: unknown): Readonly<Record<string, string>> {
  const entries = Object.entries(fields('vm.env', value));
  if (entries.length > MAX_VARIABLES) throw new StateError('vm.env', 'has too many variables');
  let left = MAX_ENVIRONMENT_BYTES;
  const checked = entries.map(([key, given]): [string, string] => {
    if (key === '' || /[=\0]/.test(key)) throw new StateError('vm.env', 'has an impossible name');
    const variable = text(`vm.env.${key.slice(0, 64)}`, given, MAX_ENVIRONMENT_BYTES);
    left -= key.length + variable.length;
    if (left < 0) throw new StateError('vm.env', 'is too large');
    return [key, variable];
  });
  // Own properties only, whatever they are called.
  return Object.fromEntries(checked);
}

function operationId(path: string, value: unknown): number {
  return integer(path, value, 1, 0xffff_ffff);
}

function toAgentState(value: unknown): AgentState {
  const given = fields('vm.agent', value);
  const state: AgentState = {
    kernel: text('vm.agent.kernel', given['kernel'], 256),
    agent: text('vm.agent.agent', given['agent'], 256),
    lastId: integer('vm.agent.lastId', given['lastId'], 0, 0xffff_ffff),
    generation: toGeneration(given['generation']),
    remainder: toRemainder(given['remainder']),
    commands: list('vm.agent.commands', given['commands'], MAX_OPERATIONS, toCommandState),
    others: list('vm.agent.others', given['others'], MAX_OPERATIONS, operationId),
    abandoned: list('vm.agent.abandoned', given['abandoned'], 2 * MAX_OPERATIONS, operationId),
  };
  const ids = [
    ...state.commands.map(({ operation }) => operation),
    ...state.others,
    ...state.abandoned,
  ];
  const names = state.commands.map(({ id }) => id);
  if (new Set(ids).size !== ids.length || new Set(names).size !== names.length) {
    throw new StateError('vm.agent', 'has two operations of the same name');
  }
  return state;
}

function toGeneration(value: unknown): string {
  const generation = text('vm.agent.generation', value, 16);
  if (!/^[0-9a-f]+$/.test(generation)) {
    throw new StateError('vm.agent.generation', 'is not a hexadecimal number');
  }
  return generation;
}

/** Part of one frame, which the agent goes on with: no complete one, and none that cannot be. */
function toRemainder(value: unknown): string {
  const remainder = text('vm.agent.remainder', value, 2 * MAX_PAYLOAD_BYTES);
  const bytes = Buffer.from(remainder, 'base64');
  const decoder = new FrameDecoder();
  try {
    if (decoder.push(bytes).length === 0 && decoder.pendingBytes === bytes.length) return remainder;
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
  }
  throw new StateError('vm.agent.remainder', 'is not part of one frame');
}

function toCommandState(path: string, value: unknown): CommandState {
  const given = fields(path, value);
  const { command } = given;
  const state: CommandState = {
    id: name(`${path}.id`, given['id']),
    operation: operationId(`${path}.operation`, given['operation']),
    command:
      typeof command === 'string'
        ? text(`${path}.command`, command)
        : list(`${path}.command`, command, 64, text),
    startedAtMs: integer(`${path}.startedAtMs`, given['startedAtMs'], 0, MAX_OFFSET),
    pid: orNull(given['pid'], (pid) => integer(`${path}.pid`, pid, 1, 0x7fff_ffff)),
    stdin: flag(`${path}.stdin`, given['stdin']),
    stdout: flag(`${path}.stdout`, given['stdout']),
    stderr: flag(`${path}.stderr`, given['stderr']),
    pty: flag(`${path}.pty`, given['pty']),
    input: toOutgoing(`${path}.input`, given['input']),
    output: toIncoming(`${path}.output`, given['output']),
    error: toIncoming(`${path}.error`, given['error']),
  };
  if (typeof state.command !== 'string' && state.command.length === 0) {
    throw new StateError(`${path}.command`, 'is empty');
  }
  return state;
}

function toIncoming(path: string, value: unknown): IncomingState {
  const given = fields(path, value);
  const received = integer(`${path}.received`, given['received'], 0, MAX_OFFSET);
  return {
    received,
    limit: integer(`${path}.limit`, given['limit'], received, received + MAX_WINDOW_BYTES),
    ended: flag(`${path}.ended`, given['ended']),
  };
}

function toOutgoing(path: string, value: unknown): OutgoingState {
  const given = fields(path, value);
  const sent = integer(`${path}.sent`, given['sent'], 0, MAX_OFFSET);
  return {
    sent,
    limit: integer(`${path}.limit`, given['limit'], sent, MAX_OFFSET * 2 - 1),
    ended: flag(`${path}.ended`, given['ended']),
  };
}
