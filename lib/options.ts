import {
  checkEnvironment,
  checkInteger,
  checkOptions,
  checkSignal,
  checkText,
  checkTimeout,
  type Environment,
  show,
  wrongType,
} from './internal/base/validate.js';
import { GiB, MiB } from './units.js';

/** Options of `Vm.create()`. */
export interface VmOptions {
  /**
   * Guest memory in bytes: 32 MiB to 64 GiB, a multiple of 4096.
   *
   * The host allocates a page when the guest first touches it, not before.
   *
   * @defaultValue 128 MiB
   */
  readonly memoryBytes?: number;
  /**
   * Number of vCPUs, 1 to 16.
   *
   * @defaultValue 1
   */
  readonly vcpus?: number;
  /**
   * Path of an x86-64 Linux kernel on the host: an ELF `vmlinux` or a bzImage. It needs
   * what `docs/guest-kernel.md` lists.
   *
   * @defaultValue `$FORKLET_KERNEL`, or else the kernel that comes with this package
   */
  readonly kernel?: string;
  /**
   * Directory of the host with the modules of {@link kernel}, in the layout of
   * `/lib/modules/<release>` and seen by depmod, for a kernel that has virtio-mmio or vsock as
   * modules. What the agent needs to reach the host is packed into the guest and loaded there:
   * `virtio_mmio`, `vmw_vsock_virtio_transport` and their dependencies, and `virtio_rng` where the
   * kernel has it.
   *
   * @defaultValue none
   */
  readonly modules?: string;
  /** Appended to the kernel's command line; at most 1024 bytes of printable ASCII. */
  readonly kernelArgs?: string;
  /**
   * What the guest finds at `/`: a directory of the host, packed at each boot, or a cpio archive
   * (`newc`). The guest works on a copy in its memory and never reaches the host's files.
   *
   * @defaultValue busybox and nothing else
   */
  readonly root?: string;
  /**
   * Environment of every command, over the default of `PATH` and `HOME`; `undefined` removes a
   * variable. The host's environment is never passed on.
   */
  readonly env?: Environment;
  /**
   * Host name of the guest: 1 to 64 letters, digits, dots and hyphens.
   *
   * @defaultValue `'forklet'`
   */
  readonly hostname?: string;
  /**
   * Longest time from the call until the guest agent answers, in milliseconds, 1 to 2^31 - 1.
   *
   * @defaultValue 60 000
   */
  readonly bootTimeoutMs?: number;
  /** Aborts creation. It has no effect on a VM that was created. */
  readonly signal?: AbortSignal;
}

/** {@link VmOptions}, checked and complete. */
export interface CheckedVmOptions {
  readonly memoryBytes: number;
  readonly vcpus: number;
  readonly kernel: string | undefined;
  readonly modules: string | undefined;
  readonly kernelArgs: string;
  readonly root: string | undefined;
  readonly env: Environment;
  readonly hostname: string;
  readonly bootTimeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export const DEFAULT_MEMORY_BYTES = 128 * MiB;
export const DEFAULT_VCPUS = 1;
export const DEFAULT_BOOT_TIMEOUT_MS = 60_000;
export const DEFAULT_HOSTNAME = 'forklet';

/** What a command finds in its environment when nobody said anything else. */
export const DEFAULT_ENVIRONMENT: Environment = Object.freeze({
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  HOME: '/root',
});

/** The host's part of the command line needs the rest of the kernel's 2048 bytes. */
const MAX_KERNEL_ARGS_BYTES = 1024;

const KNOWN = [
  'memoryBytes',
  'vcpus',
  'kernel',
  'modules',
  'kernelArgs',
  'root',
  'env',
  'hostname',
  'bootTimeoutMs',
  'signal',
] as const satisfies readonly (keyof VmOptions)[];

function checkPath(option: string, value: unknown): string {
  const path = checkText(option, value);
  if (path === '') throw new TypeError(`Option "${option}" must not be empty`);
  return path;
}

function checkKernelArgs(value: unknown): string {
  if (typeof value !== 'string') throw wrongType('kernelArgs', 'a string', value);
  if (!/^[\x20-\x7e]*$/.test(value)) {
    throw new TypeError(`Option "kernelArgs" must be printable ASCII; got ${show(value)}`);
  }
  if (value.length > MAX_KERNEL_ARGS_BYTES) {
    throw new RangeError(
      `Option "kernelArgs" must have at most ${MAX_KERNEL_ARGS_BYTES} bytes; got ${value.length}`,
    );
  }
  return value;
}

export function checkHostname(value: unknown): string {
  const hostname = checkText('hostname', value);
  if (!/^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$/.test(hostname)) {
    throw new TypeError(
      'Option "hostname" must be 1 to 64 letters, digits, dots and hyphens, ' +
        `with a letter or digit at both ends; got ${show(hostname)}`,
    );
  }
  return hostname;
}

/** Checks and completes the options of `Vm.create()`. Throws TypeError or RangeError. */
export function checkVmOptions(options: VmOptions | undefined): CheckedVmOptions {
  const given = checkOptions('Vm.create()', options, KNOWN);
  const take = <T>(value: unknown, check: (value: unknown) => T, otherwise: T): T =>
    value === undefined ? otherwise : check(value);
  return {
    memoryBytes: take(
      given.memoryBytes,
      (value) =>
        checkInteger('memoryBytes', value, { min: 32 * MiB, max: 64 * GiB, multipleOf: 4096 }),
      DEFAULT_MEMORY_BYTES,
    ),
    vcpus: take(
      given.vcpus,
      (value) => checkInteger('vcpus', value, { min: 1, max: 16 }),
      DEFAULT_VCPUS,
    ),
    kernel: take(given.kernel, (value) => checkPath('kernel', value), undefined),
    modules: take(given.modules, (value) => checkPath('modules', value), undefined),
    kernelArgs: take(given.kernelArgs, checkKernelArgs, ''),
    root: take(given.root, (value) => checkPath('root', value), undefined),
    env: take(given.env, (value) => checkEnvironment('env', value), {}),
    hostname: take(given.hostname, checkHostname, DEFAULT_HOSTNAME),
    bootTimeoutMs: take(
      given.bootTimeoutMs,
      (value) => checkTimeout('bootTimeoutMs', value),
      DEFAULT_BOOT_TIMEOUT_MS,
    ),
    signal: take(given.signal, (value) => checkSignal('signal', value), undefined),
  };
}
