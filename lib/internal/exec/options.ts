import { Readable, Writable } from 'node:stream';

import type { ExecCommand, ExecOptions, TerminalSize } from '../../exec.js';
import {
  checkBoolean,
  checkEncoding,
  checkEnvironment,
  checkInteger,
  checkOptions,
  checkSignal,
  checkText,
  checkTimeout,
  type Environment,
  show,
  wrongType,
} from '../base/validate.js';
import { checkIdentity, type ExecIdentity, inherited } from './identity.js';

export const DEFAULT_MAX_OUTPUT_BYTES = 16 * 1024 * 1024;

/** What Node's largest Buffer holds on every supported version. */
const MAX_OUTPUT_BYTES_LIMIT = 2 ** 31 - 1;

/** Of terminals that somebody wanted without saying how large. */
export const DEFAULT_TERMINAL_SIZE: TerminalSize = { columns: 80, rows: 24 };
const MAX_TERMINAL_CHARACTERS = 65_535;

/** What terminals are called that understand the sequences of today's. */
const DEFAULT_TERM = 'xterm-256color';

const KNOWN = [
  'cwd',
  'env',
  'user',
  'group',
  'groups',
  'umask',
  'limits',
  'stdin',
  'stdout',
  'stderr',
  'pty',
  'check',
  'timeoutMs',
  'signal',
  'killTree',
  'maxOutputBytes',
  'encoding',
] as const satisfies readonly (keyof ExecOptions)[];

export type StdinOption = 'pipe' | 'ignore' | Readable | Uint8Array;
/** `'terminal'`: there is none, since it is part of the terminal's output. */
export type OutputOption = 'pipe' | 'ignore' | 'terminal' | Writable;

/** A command with its options, checked and complete. */
export interface CheckedExec {
  readonly command: ExecCommand;
  readonly args: readonly string[];
  readonly cwd: string | undefined;
  readonly env: Environment;
  readonly identity: ExecIdentity;
  readonly stdin: StdinOption;
  readonly stdout: OutputOption;
  readonly stderr: OutputOption;
  /** Whether the three are one terminal. */
  readonly pty: boolean;
  /** Its size when the command starts. */
  readonly terminalSize: TerminalSize;
  readonly check: boolean;
  readonly timeoutMs: number | undefined;
  readonly signal: AbortSignal | undefined;
  readonly killTree: boolean;
  readonly maxOutputBytes: number;
  readonly encoding: BufferEncoding | 'buffer';
}

function checkCommand(command: unknown): readonly string[] {
  if (typeof command === 'string') return ['/bin/sh', '-c', checkText('command', command)];
  if (!Array.isArray(command)) {
    throw new TypeError(
      `The command must be a string for /bin/sh or an array of strings; got ${show(command)}`,
    );
  }
  if (command.length === 0) throw new TypeError('The command must not be an empty array');
  const args = command.map((arg, index) => checkText(`command[${index}]`, arg));
  if (args[0] === '') throw new TypeError('The program, command[0], must not be empty');
  return args;
}

function checkStdin(value: unknown): StdinOption {
  if (value === 'pipe' || value === 'ignore') return value;
  // Any other string is the input itself; the two words can be given as a Buffer.
  if (typeof value === 'string') return Buffer.from(value);
  if (value instanceof Uint8Array || value instanceof Readable) return value;
  throw wrongType('stdin', "'pipe', 'ignore', a Readable, a Uint8Array or a string", value);
}

function checkOutput(name: 'stdout' | 'stderr', value: unknown): OutputOption {
  if (value === 'pipe' || value === 'ignore') return value;
  if (value === 'inherit') return process[name];
  if (value instanceof Writable) return value;
  throw wrongType(name, "'pipe', 'ignore', 'inherit' or a Writable", value);
}

/** Checks what concerns a terminal. */
function checkTerminal(given: Partial<ExecOptions>): Pick<CheckedExec, 'pty' | 'terminalSize'> {
  const { pty = false } = given;
  if (pty === false) return { pty, terminalSize: DEFAULT_TERMINAL_SIZE };
  const { stdout = 'pipe', stderr = 'pipe' } = given;
  if (stdout === 'ignore') {
    throw new TypeError(
      'Option "stdout" must not be \'ignore\' with "pty": a terminal that nobody reads stalls',
    );
  }
  if (stderr !== 'pipe') {
    throw new TypeError(
      'Option "stderr" must be left out with "pty": what a terminal shows is all in stdout; ' +
        `got ${show(stderr)}`,
    );
  }
  const size = pty === true ? DEFAULT_TERMINAL_SIZE : checkTerminalSize('pty', pty);
  return { pty: true, terminalSize: size };
}

/** Checks the size of a terminal; `option` names it in messages. */
export function checkTerminalSize(option: string, value: unknown): TerminalSize {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw wrongType(option, 'true, false or { columns, rows }', value);
  }
  const known = ['columns', 'rows'] as const;
  const { columns, rows } = checkOptions(option, value as Partial<TerminalSize>, known);
  const range = { min: 1, max: MAX_TERMINAL_CHARACTERS };
  return {
    columns: checkInteger(`${option}.columns`, columns, range),
    rows: checkInteger(`${option}.rows`, rows, range),
  };
}

/** Checks what was passed to `vm.exec()`. Throws TypeError or RangeError. */
export function checkExec(command: ExecCommand, options: unknown, vmEnv: Environment): CheckedExec {
  if (Array.isArray(options) && typeof command === 'string') {
    const form = [command, ...options].map((arg) => `'${String(arg)}'`).join(', ');
    throw new TypeError(
      `vm.exec() takes program and arguments as one array: vm.exec([${form}]). ` +
        'A string alone is a command line for /bin/sh.',
    );
  }
  const args = checkCommand(command);
  const given = checkOptions<ExecOptions>('vm.exec()', options as ExecOptions | undefined, KNOWN);
  const take = <T>(value: unknown, check: (value: unknown) => T, otherwise: T): T =>
    value === undefined ? otherwise : check(value);
  const env = take(given.env, (value) => checkEnvironment('env', value), {});
  const identity = checkIdentity(given, env);
  const terminal = checkTerminal(given);
  return {
    command,
    args,
    cwd: take(given.cwd, (value) => checkText('cwd', value), undefined),
    env: {
      ...(terminal.pty && { TERM: DEFAULT_TERM }),
      ...inherited(vmEnv, identity),
      ...env,
    },
    identity,
    stdin: take(given.stdin, checkStdin, 'pipe'),
    stdout: take(given.stdout, (value) => checkOutput('stdout', value), 'pipe'),
    stderr: terminal.pty
      ? 'terminal'
      : take(given.stderr, (value) => checkOutput('stderr', value), 'pipe'),
    ...terminal,
    check: take(given.check, (value) => checkBoolean('check', value), false),
    timeoutMs: take(given.timeoutMs, (value) => checkTimeout('timeoutMs', value), undefined),
    signal: take(given.signal, (value) => checkSignal('signal', value), undefined),
    killTree: take(given.killTree, (value) => checkBoolean('killTree', value), false),
    maxOutputBytes: take(
      given.maxOutputBytes,
      (value) => checkInteger('maxOutputBytes', value, { min: 0, max: MAX_OUTPUT_BYTES_LIMIT }),
      DEFAULT_MAX_OUTPUT_BYTES,
    ),
    encoding: take(
      given.encoding,
      (value) => (value === 'buffer' ? value : checkEncoding('encoding', value)),
      'utf8',
    ),
  };
}

/** The environment as the guest takes it. */
export function environmentList(env: Environment): string[] {
  return Object.entries(env).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  );
}

/** Bytes that one string adds to a request besides its own. */
const RECORD_OVERHEAD_BYTES = 8;

/** Bytes of a limit in a request, generously. */
const LIMIT_BYTES = 64;

/** Bytes of a request's fixed records, generously. */
const FIXED_BYTES = 256;

/** Upper bound of the bytes that a command takes in its request. */
export function requestBytes(exec: CheckedExec): number {
  let bytes = FIXED_BYTES + Buffer.byteLength(exec.cwd ?? '');
  const { user, group, groups = [], limits = [] } = exec.identity;
  bytes += limits.length * LIMIT_BYTES;
  const names = [user, group, ...groups].map((name) => (typeof name === 'string' ? name : 'id.4'));
  for (const text of [...exec.args, ...environmentList(exec.env), ...names]) {
    bytes += RECORD_OVERHEAD_BYTES + Buffer.byteLength(text);
  }
  return bytes;
}
