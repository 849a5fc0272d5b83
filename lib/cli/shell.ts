import type { ExecProcess } from '../exec.js';
import { Vm } from '../vm.js';
import { explainFailure, statusOf } from './outcome.js';
import { parseShellArguments } from './run-options.js';
import { SignalRelay } from './signal-relay.js';
import { UserTerminal } from './user-terminal.js';

/** `forklet shell`. */
export async function runShell(args: readonly string[]): Promise<number> {
  const { vm: options, exec, forwards, command, console: showConsole } = parseShellArguments(args);
  let running: ExecProcess | undefined;
  const terminal = new UserTerminal((size) => running?.resize(size));
  // Signals end this program: what is typed in the terminal makes none while the guest has it.
  const relay = new SignalRelay();
  let vm: Vm | undefined;
  try {
    vm = await Vm.create({ ...options, signal: relay.abort.signal });
    relay.abort.signal.addEventListener('abort', () => void vm?.close());
    if (showConsole) {
      process.stderr.write(vm.console());
      vm.on('console', (data) => process.stderr.write(data));
    }
    // Closed with the VM.
    for (const forward of forwards) await vm.forward(forward);
    terminal.take();
    running = vm.exec(command, {
      ...exec,
      pty: terminal.size,
      stdin: process.stdin,
      stdout: process.stdout,
    });
    return statusOf(await running);
  } catch (error) {
    // Before anything is said: line breaks do not return the carriage of a raw terminal.
    terminal.release();
    return explainFailure(error, relay.received);
  } finally {
    terminal.release();
    relay.stop();
    await vm?.close();
  }
}
