import { accessSync, constants } from 'node:fs';

/** Whether this process may open `/dev/kvm`; tests that boot a VM are skipped where it may not. */
export const hasKvm: boolean = mayOpen('/dev/kvm');

function mayOpen(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
