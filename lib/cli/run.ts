import { Vm } from '../vm.js';
import { explainFailure, statusOf } from './outcome.js';
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
    return explainFailure(error, relay.received);
  } finally {
    relay.stop();
    await vm?.close();
  }
}
