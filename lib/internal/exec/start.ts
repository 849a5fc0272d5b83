// Handles of commands: of new ones, and of those that run.

import { VmError } from '../../errors.js';
import { type ExecCommand, type ExecOptions, ExecProcess } from '../../exec.js';
import type { CommandInfo } from '../agent/state.js';
import { show } from '../base/validate.js';
import type { Guest } from '../vm/guest.js';
import {
  type CheckedExec,
  checkExec,
  DEFAULT_MAX_OUTPUT_BYTES,
  DEFAULT_TERMINAL_SIZE,
} from './options.js';
import { ExecRun } from './run.js';

const ESRCH = 3;

/** What `vm.exec()` does. */
export function startCommand(
  guest: Guest,
  command: ExecCommand,
  options: ExecOptions | undefined,
): ExecProcess<string> | ExecProcess<Buffer> {
  const checked = checkExec(command, options, guest.env);
  return new ExecProcess(new ExecRun<string>(guest, checked, startCommand));
}

/** What `vm.attach()` does. */
export function attachCommand(guest: Guest, id: string): ExecProcess<string> {
  const { agent } = guest;
  const operation = agent.attach(id) ?? agent.refuse(agent.failure ?? noSuchCommand(id));
  const known = ExecRun.of<string>(operation);
  if (known !== undefined) return new ExecProcess(known);
  const taken = asTaken(id, operation.command);
  return new ExecProcess(new ExecRun<string>(guest, taken, attachCommand, operation));
}

/** A command of somebody else's as this handle takes it: the streams that the guest connects. */
function asTaken(id: string, command: CommandInfo | undefined): CheckedExec {
  const pipe = (connected: boolean | undefined) => (connected === true ? 'pipe' : 'ignore');
  return {
    command: command?.command ?? id,
    args: [],
    cwd: undefined,
    env: {},
    identity: {},
    stdin: pipe(command?.stdin),
    stdout: pipe(command?.stdout),
    stderr: command?.pty === true ? 'terminal' : pipe(command?.stderr),
    pty: command?.pty === true,
    terminalSize: DEFAULT_TERMINAL_SIZE,
    check: false,
    timeoutMs: undefined,
    signal: undefined,
    killTree: false,
    maxOutputBytes: DEFAULT_MAX_OUTPUT_BYTES,
    encoding: 'utf8',
  };
}

function noSuchCommand(id: string): VmError {
  return new VmError({
    code: 'ERR_VM_EXEC',
    message: `There is no command ${show(id)} that runs in this VM; see vm.processes()`,
    errno: -ESRCH,
    syscall: 'attach',
  });
}
