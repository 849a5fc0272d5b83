import { errorCode, VmError } from '../errors.js';
import type { ExecResult } from '../exec.js';
import { escapeControl } from '../internal/console-buffer.js';
import { Vm } from '../vm.js';
import { NOT_EXECUTABLE, NOT_FOUND, signalExitCode, TIMED_OUT } from './exit-codes.js';
import { parseRunArguments } from './run-options.js';
import { SignalRelay } from './signal-relay.js';

/** `forklet run`. */
export async function runCommand(args: readonly string[]): Promise<number> {
  const { vm: options, exec, forwards, command, console: showConsole } = parseRunArguments(args);
  const relay = new SignalRelay();
  let vm: Vm | undefined;
  try {
    vm = await Vm.create({ ...options, signal: relay.abort.signal });
    if (showConsole) {
      process.stderr.write(vm.console());
      vm.on('console', (data) => process.stderr.write(data));
    }
    // Closed with the VM.
    for (const forward of forwards) await vm.forward(forward);
    const running = vm.exec(command, {
      ...exec,
      stdin: process.stdin,
      stdout: 'inherit',
      stderr: 'inherit',
    });
    relay.forwardTo(running);
    return statusOf(await running);
  } catch (error) {
    return explain(error, relay.received);
  } finally {
    relay.stop();
    await vm?.close();
  }
}

function statusOf({ exitCode, signal }: ExecResult): number {
  return signal === null ? (exitCode ?? 0) : signalExitCode(signal);
}

/** The exit code of a failure that has one of its own; all others are thrown on. */
function explain(error: unknown, received: NodeJS.Signals | undefined): number {
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
