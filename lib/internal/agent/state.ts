// What a fork has to know of the agent's connection in the VM that was frozen. Plain data: it is
// kept with a snapshot in memory, and saved with it as JSON.

import type { ExecCommand } from '../../exec.js';
import type { IncomingState, OutgoingState } from './streams.js';

/** A command as far as it is known to everybody, whoever started it. */
export interface CommandInfo {
  /** Names the command in this VM and in its forks. */
  readonly id: string;
  /** As it was given, shortened if need be. */
  readonly command: ExecCommand;
  /** Host time of the start, in milliseconds since 1970. */
  readonly startedAtMs: number;
  /** Which streams the guest connects. */
  readonly stdin: boolean;
  readonly stdout: boolean;
  readonly stderr: boolean;
  /** Whether they are one terminal, which is `stdout` then. */
  readonly pty: boolean;
}

/** A command that ran when the VM was frozen. */
export interface CommandState extends CommandInfo {
  /** Of the agent's protocol. */
  readonly operation: number;
  readonly pid: number | null;
  readonly input: OutgoingState;
  readonly output: IncomingState;
  readonly error: IncomingState;
}

/** The control connection of a frozen VM. */
export interface AgentState {
  readonly kernel: string;
  readonly agent: string;
  /** The number that was last given to an operation. */
  readonly lastId: number;
  /** The generation that the agent last confirmed, in hexadecimal; `'0'` for none. */
  readonly generation: string;
  /** Bytes of a frame that has not arrived completely, in base64. */
  readonly remainder: string;
  readonly commands: readonly CommandState[];
  /** Operations under way that no fork goes on with, such as reading a file. */
  readonly others: readonly number[];
  /** Operations that the host has given up, of which frames may still come. */
  readonly abandoned: readonly number[];
}

/** Longest text of a command, in characters, that is kept with it. */
const MAX_COMMAND_LENGTH = 1024;

/** Most arguments of a command that are kept with it. */
const MAX_COMMAND_ARGUMENTS = 64;

/** A command shortened to what is worth keeping: it may have 2 MiB. */
export function boundedCommand(command: ExecCommand): ExecCommand {
  if (typeof command === 'string') return shorten(command, MAX_COMMAND_LENGTH);
  const kept: string[] = [];
  let left = MAX_COMMAND_LENGTH;
  for (const argument of command.slice(0, MAX_COMMAND_ARGUMENTS)) {
    if (left <= 0) break;
    kept.push(shorten(argument, left));
    left -= argument.length;
  }
  return kept;
}

function shorten(text: string, length: number): string {
  return text.length <= length ? text : `${text.slice(0, length)}...`;
}
