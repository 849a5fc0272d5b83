import { readFile } from 'node:fs/promises';

import { errorCode } from './errors.js';
import { ARTIFACT_REMEDY, artifactPaths, kvmPath, unreadable } from './internal/boot/artifacts.js';
import { Core } from './internal/core.js';
import { capacity, type ForkCapacity, readForkLimits } from './internal/snapshot/fork-limits.js';
import { type NativeProbe, unsupportedPlatform } from './native.js';
import { DEFAULT_MEMORY_BYTES } from './options.js';
import { MiB } from './units.js';

/** One thing that {@link doctor} looked at. */
export interface DoctorCheck {
  /** What was looked at, such as `'/dev/kvm'` or `'guest kernel'`. */
  readonly name: string;
  readonly ok: boolean;
  /** What is there. */
  readonly found: string;
  /** What it takes. */
  readonly needed: string;
  /** What to do about it; empty when nothing needs to be done. */
  readonly remedy: string;
}

/** Whether and how this host can run VMs. */
export interface DoctorReport {
  /** Whether all checks are. */
  readonly ok: boolean;
  /** Which KVM serves this host: `'vmx'`, `'svm'`, `'pvm'`, or `'none'`. */
  readonly backend: string;
  /** Names of what the library works around on this host. */
  readonly quirks: readonly string[];
  readonly checks: readonly DoctorCheck[];
  /**
   * How many more VMs with one vCPU fit into this process and host, guest memory left aside, and
   * the limit that decides it, such as `'RLIMIT_NOFILE'`.
   */
  readonly maxForks: ForkCapacity;
}

/** Descriptors of one VM and of the library itself, generously. */
const NEEDED_DESCRIPTORS = 256;

/** Mappings of one VM and of Node itself, generously. */
const NEEDED_MAPPINGS = 4096;

function passed(name: string, found: string, needed: string): DoctorCheck {
  return { name, ok: true, found, needed, remedy: '' };
}

function checkPlatform(): DoctorCheck {
  const unsupported = unsupportedPlatform();
  const found = `${process.platform} on ${process.arch}`;
  const needed = 'linux on x64';
  if (unsupported === undefined) return passed('platform', found, needed);
  return { name: 'platform', ok: false, found, needed, remedy: 'Run it on Linux on x86-64.' };
}

/** Loads the addon and lets it look at KVM: opens the device and runs a guest of one instruction. */
async function probe(): Promise<{ addon: DoctorCheck; kvm: NativeProbe | undefined }> {
  const needed = 'an addon for this platform';
  let core: Core;
  try {
    core = Core.get();
  } catch (error) {
    const { message } = error as Error;
    const remedy =
      'In a checkout, build it with `npm run setup`. An installed package carries it for Linux ' +
      'on x86-64 with glibc.';
    return {
      addon: { name: 'addon', ok: false, found: message, needed, remedy },
      kvm: undefined,
    };
  }
  const kvm = await core.request<NativeProbe>((id) => core.native.probe(id, kvmPath()));
  return { addon: passed('addon', 'loaded', needed), kvm };
}

async function checkFile(name: string, path: string, variable: string): Promise<DoctorCheck> {
  const failure = await unreadable(path);
  const needed = 'a readable file';
  if (failure === undefined) return passed(name, path, needed);
  const remedy = process.env[variable]
    ? `Correct or unset ${variable}. ${ARTIFACT_REMEDY}`
    : ARTIFACT_REMEDY;
  return { name, ok: false, found: `${path}: ${failure.code}`, needed, remedy };
}

function describeLimit(value: number): string {
  return value === Infinity ? 'unlimited' : String(value);
}

async function checkDescriptors(): Promise<DoctorCheck> {
  const limits = await readFile('/proc/self/limits', 'utf8');
  const soft = /^Max open files\s+(\S+)/m.exec(limits)?.[1];
  const limit = soft === 'unlimited' ? Infinity : Number(soft);
  const found = describeLimit(limit);
  const needed = `at least ${NEEDED_DESCRIPTORS}`;
  const name = 'open files limit';
  if (limit >= NEEDED_DESCRIPTORS) return passed(name, found, needed);
  const remedy = `Raise the limit of the process: ulimit -n ${NEEDED_DESCRIPTORS * 4}`;
  return { name, ok: false, found, needed, remedy };
}

async function checkMappings(): Promise<DoctorCheck> {
  const limit = Number(await readFile('/proc/sys/vm/max_map_count', 'utf8'));
  const found = String(limit);
  const needed = `at least ${NEEDED_MAPPINGS}`;
  const name = 'memory mappings limit';
  if (limit >= NEEDED_MAPPINGS) return passed(name, found, needed);
  const remedy = 'As root: sysctl vm.max_map_count=65530';
  return { name, ok: false, found, needed, remedy };
}

async function checkMemory(): Promise<DoctorCheck> {
  const meminfo = await readFile('/proc/meminfo', 'utf8');
  const available = Number(/^MemAvailable:\s+(\d+) kB/m.exec(meminfo)?.[1] ?? 0) * 1024;
  const found = `${Math.floor(available / MiB)} MiB`;
  const needed = `${DEFAULT_MEMORY_BYTES / MiB} MiB for a VM of the default size`;
  const name = 'available memory';
  if (available >= DEFAULT_MEMORY_BYTES) return passed(name, found, needed);
  return { name, ok: false, found, needed, remedy: 'Free memory, or give memoryBytes.' };
}

/** A check that needs /proc, which a container may hide. */
async function attempt(name: string, check: () => Promise<DoctorCheck>): Promise<DoctorCheck> {
  try {
    return await check();
  } catch (error) {
    return {
      name,
      ok: false,
      found: errorCode(error) ?? String(error),
      needed: 'a readable /proc',
      remedy: 'Mount /proc.',
    };
  }
}

/**
 * Looks whether this host can run VMs: platform, addon, KVM (a guest of one instruction really
 * runs), the files that a VM boots from, and limits. Works on any platform and changes nothing.
 * Never rejects for what it finds.
 */
export async function doctor(): Promise<DoctorReport> {
  const platform = checkPlatform();
  const checks: DoctorCheck[] = [platform];
  let kvm: NativeProbe | undefined;
  let maxForks: ForkCapacity = { count: 0, boundBy: platform.name };
  if (platform.ok) {
    const probed = await probe();
    kvm = probed.kvm;
    maxForks = capacity(await readForkLimits(1));
    const { kernel, agent, root } = artifactPaths();
    checks.push(
      probed.addon,
      ...(kvm?.checks ?? []),
      ...(await Promise.all([
        checkFile('guest kernel', kernel, 'FORKLET_KERNEL'),
        checkFile('guest agent', agent, 'FORKLET_AGENT'),
        checkFile('guest root', root, 'FORKLET_ROOT'),
        attempt('open files limit', checkDescriptors),
        attempt('memory mappings limit', checkMappings),
        attempt('available memory', checkMemory),
      ])),
    );
  }
  return {
    ok: checks.every(({ ok }) => ok),
    backend: kvm?.backend ?? 'none',
    quirks: kvm?.quirks ?? [],
    checks,
    maxForks,
  };
}
