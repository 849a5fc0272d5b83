// The files that a VM boots from: kernel, agent and default root.

import { access, constants } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

/** Where setup links them in a checkout, and where the published package carries them. */
const DIRECTORY = fileURLToPath(new URL('../../../prebuilt/linux-x64/', import.meta.url));

/** Paths on the host; nothing says that the files exist. */
export interface Artifacts {
  readonly kernel: string;
  readonly agent: string;
  readonly root: string;
}

/** Options go before the environment, and the environment before the package. */
export function artifactPaths(options: { kernel?: string; root?: string } = {}): Artifacts {
  const { FORKLET_KERNEL, FORKLET_AGENT, FORKLET_ROOT } = process.env;
  // An empty variable is one that is not set, as shells have it.
  return {
    kernel: options.kernel ?? (FORKLET_KERNEL || `${DIRECTORY}vmlinux`),
    agent: FORKLET_AGENT || `${DIRECTORY}agent`,
    root: options.root ?? (FORKLET_ROOT || `${DIRECTORY}rootfs.cpio`),
  };
}

/** The KVM device. */
export function kvmPath(): string {
  return process.env['FORKLET_KVM'] || '/dev/kvm';
}

/** What to do when an artefact of the package is not there. */
export const ARTIFACT_REMEDY =
  'In a checkout, `npm run setup` builds it; an installed package carries it on Linux on x86-64.';

/** Whether a path is one of the package's own artefacts. */
export function isPackaged(path: string): boolean {
  return path.startsWith(DIRECTORY);
}

/** The error that access(2) fails with, or `undefined` for a path that can be read. */
export async function unreadable(
  path: string,
): Promise<{ code: string; errno: number; syscall: string } | undefined> {
  try {
    await access(path, constants.R_OK);
    return undefined;
  } catch (error) {
    return error as { code: string; errno: number; syscall: string };
  }
}
