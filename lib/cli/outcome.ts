// What `forklet run` and `forklet shell` exit with.

import { errorCode, VmError } from '../errors.js';
import type { ExecResult } from '../exec.js';
import { escapeControl } from '../internal/vm/console-buffer.js';
import { NOT_EXECUTABLE, NOT_FOUND, signalExitCode, TIMED_OUT } from './exit-codes.js';

/** The exit code of a command that has ended. */
export function statusOf({ exitCode, signal }: ExecResult): number {
  return signal === null ? (exitCode ?? 0) : signalExitCode(signal);
}

/** The exit code of a failure that has one of its own; all others are thrown on. */
export function explainFailure(error: unknown, received: NodeJS.Signals | undefined): number {
  if (received !== undefined) return signalExitCode(received);
  const code = errorCode(error);
  // Whoever read our output has gone, as in `forklet run -- yes | head`.
  if (code === 'EPIPE') return signalExitCode('SIGPIPE');
  if (!(error instanceof VmError)) throw error;
  if (error.detail !== undefined && error.detail !== '') {
    process.stderr.write(`${escapeControl(error.detail)}\n--- end of the guest's console ---\n`);
  }
  const known =
    code === 'ERR_VM_TIMEOUT'
      ? TIMED_OUT
      : code === 'ERR_VM_EXEC'
        ? error.syscall === 'execve' && error.errno === -2
          ? NOT_FOUND
          : NOT_EXECUTABLE
        : undefined;
  if (known === undefined) throw error;
  process.stderr.write(`forklet: ${error.code}: ${error.message}\n`);
  return known;
}
