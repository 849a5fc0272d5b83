// Errors that say what became of a VM.

import { VmError } from '../../errors.js';

export function closedError(): VmError {
  return new VmError({ code: 'ERR_VM_CLOSED', message: 'The VM was closed' });
}

export function pausedError(): VmError {
  return new VmError({
    code: 'ERR_VM_PAUSED',
    message: 'The VM is paused: call resume() first',
  });
}

export function resetError(): VmError {
  return new VmError({
    code: 'ERR_VM_RESET',
    message: 'The VM was reset to a snapshot while the operation was pending',
  });
}

export function exitedError(reason: string, detail: string, console: string): VmError {
  const more = detail === '' ? '' : `: ${detail}`;
  return new VmError({
    code: reason === 'io-error' ? 'ERR_VM_IO' : 'ERR_VM_EXITED',
    message: `The VM has stopped running (${reason}${more})`,
    detail: console,
  });
}

export function noSnapshotError(): VmError {
  return new VmError({
    code: 'ERR_VM_NO_SNAPSHOT',
    message: 'The VM was booted, not forked: say which snapshot it is to be reset to',
  });
}
