import { readFile } from 'node:fs/promises';

import { AbortError, VmError, type VmErrorCode } from '../../errors.js';
import type { CheckedVmOptions } from '../../options.js';
import { ARTIFACT_REMEDY, artifactPaths, isPackaged, unreadable } from './artifacts.js';
import { readKernelModules } from './kernel-modules.js';
import { maxRootBytes, packRoot } from './pack-root.js';

/** What a boot reads from the host's files. */
export interface BootFiles {
  readonly kernelPath: string;
  readonly initramfs: readonly Uint8Array[];
}

/** Finds kernel, modules and agent and packs the root; throws VmError or AbortError. */
export async function prepareBoot(options: CheckedVmOptions): Promise<BootFiles> {
  const { kernel, modules, root, memoryBytes, signal } = options;
  if (signal?.aborted) throw new AbortError(signal.reason);
  const paths = artifactPaths({
    ...(kernel !== undefined && { kernel }),
    ...(root !== undefined && { root }),
  });
  await expectFile('ERR_VM_BAD_KERNEL', 'Kernel', paths.kernel);
  await expectFile('ERR_VM_BAD_ROOT', 'Guest agent', paths.agent);
  await expectFile('ERR_VM_BAD_ROOT', 'Root', paths.root);
  try {
    const initramfs = await packRoot({
      root: paths.root,
      agent: await readAgent(paths.agent),
      modules: modules === undefined ? [] : await readKernelModules(modules),
      maxBytes: maxRootBytes(memoryBytes),
      signal,
    });
    return { kernelPath: paths.kernel, initramfs };
  } catch (error) {
    if (signal?.aborted) throw new AbortError(signal.reason);
    throw error;
  }
}

async function readAgent(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    const { code, errno, syscall } = cause as NodeJS.ErrnoException;
    throw new VmError({
      code: 'ERR_VM_SYSTEM',
      message: `Guest agent '${path}' cannot be read: ${code ?? String(cause)}.`,
      ...(errno !== undefined && { errno }),
      ...(syscall !== undefined && { syscall }),
      cause,
    });
  }
}

async function expectFile(code: VmErrorCode, what: string, path: string): Promise<void> {
  const failure = await unreadable(path);
  if (failure === undefined) return;
  const remedy = isPackaged(path) ? ` ${ARTIFACT_REMEDY}` : '';
  throw new VmError({
    code,
    message: `${what} '${path}' cannot be read: ${failure.code}.${remedy}`,
    errno: failure.errno,
    syscall: failure.syscall,
    cause: failure,
  });
}
