// Which modules of a kernel the guest agent needs to reach the host, and in which order.

import { constants } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import path from 'node:path';

import { VmError } from '../../errors.js';

/** A module as it goes into the guest. */
export interface KernelModule {
  /** Of the file, such as `virtio_mmio.ko`, maybe with a compressed one's suffix. */
  readonly fileName: string;
  readonly data: Uint8Array;
}

/** Without these the agent cannot reach the host. */
const REQUIRED = ['virtio_mmio', 'vmw_vsock_virtio_transport'] as const;
/** Taken where the kernel has it: a kernel without it has less entropy, and works. */
const OPTIONAL = ['virtio_rng'] as const;

const DEPMOD_HINT =
  'It takes a directory such as /lib/modules/6.1.0-9-amd64; in an unpacked package, depmod(8) ' +
  'makes modules.dep.';

/** Modules are some kilobytes; this is for a file that is none. */
const MAX_MODULE_BYTES = 64 << 20;

/**
 * Reads what the agent needs from a directory in the layout of `/lib/modules/<release>`, as depmod
 * leaves it: each module behind those that it depends on. What is built into the kernel is left out.
 *
 * @throws {VmError} `ERR_VM_BAD_KERNEL`: missing, unreadable or damaged, or lacks a module.
 */
export async function readKernelModules(directory: string): Promise<KernelModule[]> {
  const text = await readText(directory, 'modules.dep', DEPMOD_HINT);
  const dependencies = parseDependencies(text);
  const builtIn = parseBuiltIn(await readText(directory, 'modules.builtin'));
  const files = new Set<string>();
  for (const name of REQUIRED) {
    if (builtIn.has(name)) continue;
    const inOrder = dependencies.get(name);
    if (inOrder === undefined) throw lacking(directory, name);
    for (const file of inOrder) files.add(file);
  }
  // The agent looks for modules when it cannot dial without them, and only then.
  if (files.size === 0) return [];
  for (const name of OPTIONAL) {
    for (const file of dependencies.get(name) ?? []) files.add(file);
  }
  return await Promise.all([...files].map((file) => readModule(directory, file)));
}

/**
 * Takes lines of modules.dep apart: `kernel/a.ko: kernel/b.ko kernel/c.ko`, which means that c goes
 * first, then b, then a.
 *
 * @returns files in the order to load them in, by the name of the module that needs them.
 */
function parseDependencies(text: string): Map<string, readonly string[]> {
  const dependencies = new Map<string, readonly string[]>();
  for (const line of text.split('\n')) {
    const [file = '', needed] = line.split(':');
    if (needed === undefined) continue;
    const files = needed.split(' ').filter((name) => name !== '');
    dependencies.set(moduleName(file), [...files.reverse(), file]);
  }
  return dependencies;
}

function parseBuiltIn(text: string): Set<string> {
  return new Set(text.split('\n').map(moduleName));
}

/** The kernel's name for the module in a file: it does not tell `-` from `_`. */
function moduleName(file: string): string {
  return path.posix
    .basename(file)
    .replace(/\.ko(\.\w+)?$/, '')
    .replaceAll('-', '_');
}

async function readText(directory: string, name: string, hint = ''): Promise<string> {
  const file = path.join(directory, name);
  return await naming(directory, file, hint, readFile(file, 'utf8'));
}

async function readModule(directory: string, name: string): Promise<KernelModule> {
  const file = path.resolve(directory, name);
  // Neither a FIFO nor a device would ever end.
  const flags = constants.O_RDONLY | constants.O_NONBLOCK;
  const handle = await naming(directory, file, '', open(file, flags));
  try {
    const found = await handle.stat();
    if (!found.isFile() || found.size > MAX_MODULE_BYTES) {
      throw badModules(directory, `have '${file}', which is not a module`);
    }
    const data = await naming(directory, file, '', handle.readFile());
    return { fileName: path.posix.basename(name), data };
  } finally {
    await handle.close();
  }
}

function badModules(directory: string, problem: string): VmError {
  return new VmError({
    code: 'ERR_VM_BAD_KERNEL',
    message: `Kernel modules '${directory}' ${problem}.`,
  });
}

function lacking(directory: string, name: string): VmError {
  return badModules(
    directory,
    `lack ${name}, which the guest agent needs: neither modules.dep nor modules.builtin names it`,
  );
}

/** Turns a failure into one that names the file. */
async function naming<T>(
  directory: string,
  file: string,
  hint: string,
  result: Promise<T>,
): Promise<T> {
  try {
    return await result;
  } catch (cause) {
    const { code, errno, syscall } = cause as NodeJS.ErrnoException;
    throw new VmError({
      code: 'ERR_VM_BAD_KERNEL',
      message:
        `Kernel modules '${directory}': cannot read '${file}': ${code ?? String(cause)}.` +
        (hint === '' ? '' : ` ${hint}`),
      ...(errno !== undefined && { errno }),
      ...(syscall !== undefined && { syscall }),
      cause,
    });
  }
}
