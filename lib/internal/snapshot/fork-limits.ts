// How many VMs fit into this process and host. Limits are read before many forks are made, because
// running into one half-way is slow, hits whatever else runs, and often says ENOMEM for everything.

import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';

import { VmError } from '../../errors.js';
import { MiB } from '../../units.js';

/** What one VM takes; measured on this library's own forks, rounded up. */
export const VM_COST = {
  /** KVM's VM and vCPU, events and timers of the devices, disks */
  descriptors: 14,
  /** Guest memory and its layers, `kvm_run`, a thread's stack and its guard */
  mappings: 8,
  /** KVM's own, besides one for each vCPU */
  kernelThreads: 1,
  /** KVM's own, before the guest has written a page, in bytes */
  kernelBytes: 450 * 1024,
} as const;

/** What is left to everything else in the process. */
const RESERVE = { descriptors: 64, mappings: 1024, threads: 64, bytes: 64 * MiB } as const;

/** One limit of process or host. */
export interface ForkLimit {
  /** As administrators know it, such as `'RLIMIT_NOFILE'`. */
  readonly name: string;
  /** How much of it is free; Infinity for no limit. */
  readonly free: number;
  /** How much of that one VM takes. */
  readonly perVm: number;
  /** What it counts. */
  readonly unit: string;
  /** How to raise it. */
  readonly remedy: string;
}

/** How many VMs fit, and what decides that. */
export interface ForkCapacity {
  readonly count: number;
  readonly boundBy: string;
}

/** Where the kernel tells; other places in tests. */
export interface LimitSources {
  readonly proc: string;
  readonly cgroup: string;
  readonly uid: number;
}

const HOST: LimitSources = {
  proc: '/proc',
  cgroup: '/sys/fs/cgroup',
  uid: process.geteuid?.() ?? 0,
};

export async function readForkLimits(
  vcpus: number,
  sources: LimitSources = HOST,
): Promise<ForkLimit[]> {
  const [descriptors, mappings, threads, memory] = await Promise.all([
    readDescriptors(sources),
    readMappings(sources),
    readThreads(sources, vcpus),
    readMemory(sources),
  ]);
  return [descriptors, mappings, ...threads, ...memory];
}

/** How many VMs fit into the tightest of the limits. */
export function capacity(limits: readonly ForkLimit[]): ForkCapacity {
  let tightest: ForkCapacity = { count: Number.MAX_SAFE_INTEGER, boundBy: 'nothing' };
  for (const limit of limits) {
    const count = roomOf(limit);
    if (count < tightest.count) tightest = { count, boundBy: limit.name };
  }
  return tightest;
}

/** @throws {VmError} `ERR_VM_LIMIT`: so many more VMs do not fit. */
export async function checkForkLimits(
  count: number,
  vcpus: number,
  sources?: LimitSources,
): Promise<void> {
  for (const limit of await readForkLimits(vcpus, sources)) {
    const room = roomOf(limit);
    if (count <= room) continue;
    const { name, free, perVm, unit, remedy } = limit;
    throw new VmError({
      code: 'ERR_VM_LIMIT',
      message:
        `${count} more VMs do not fit: they take ${count * perVm} ${unit}, and ${name} leaves ` +
        `${Math.max(0, free)}, enough for ${room}. ${remedy}`,
    });
  }
}

function roomOf({ free, perVm }: ForkLimit): number {
  return Math.max(0, Math.min(Number.MAX_SAFE_INTEGER, Math.floor(free / perVm)));
}

async function readText(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8');
  } catch {
    // A container may hide it, and cgroups have only what is switched on: no limit to go by.
    return undefined;
  }
}

function toNumber(text: string | undefined): number {
  const value = text?.trim() ?? '';
  return /^\d+$/.test(value) ? Number(value) : Infinity;
}

function finite(value: number): number {
  return Number.isFinite(value) ? value : 0;
}

/** The soft limit of that name in /proc/self/limits. */
async function softLimit({ proc }: LimitSources, name: string): Promise<number> {
  const limits = (await readText(`${proc}/self/limits`)) ?? '';
  return toNumber(new RegExp(`^${name}\\s+(\\S+)`, 'm').exec(limits)?.[1]);
}

async function readDescriptors(sources: LimitSources): Promise<ForkLimit> {
  const limit = await softLimit(sources, 'Max open files');
  const used = (await readdir(`${sources.proc}/self/fd`).catch(() => [])).length;
  return {
    name: 'RLIMIT_NOFILE',
    free: limit - used - RESERVE.descriptors,
    perVm: VM_COST.descriptors,
    unit: 'descriptors',
    remedy: 'Raise it with `ulimit -n`.',
  };
}

async function readMappings({ proc }: LimitSources): Promise<ForkLimit> {
  const limit = toNumber(await readText(`${proc}/sys/vm/max_map_count`));
  const maps = (await readText(`${proc}/self/maps`)) ?? '';
  return {
    name: 'vm.max_map_count',
    free: limit - maps.split('\n').length - RESERVE.mappings,
    perVm: VM_COST.mappings,
    unit: 'memory mappings',
    remedy: 'Raise it with `sysctl vm.max_map_count`.',
  };
}

async function readThreads(sources: LimitSources, vcpus: number): Promise<ForkLimit[]> {
  const { proc, cgroup, uid } = sources;
  // Threads of all users, which is no fewer than those of this one.
  const loadavg = (await readText(`${proc}/loadavg`)) ?? '';
  const running = Number(/\d+\/(\d+)/.exec(loadavg)?.[1] ?? 0);
  const threads = { perVm: vcpus + VM_COST.kernelThreads, unit: 'threads' } as const;
  const kernel = toNumber(await readText(`${proc}/sys/kernel/threads-max`));
  const limits: ForkLimit[] = [
    {
      ...threads,
      name: 'kernel.threads-max',
      free: kernel - running - RESERVE.threads,
      remedy: 'Raise it with `sysctl kernel.threads-max`.',
    },
  ];
  if (uid !== 0) {
    limits.push({
      ...threads,
      name: 'RLIMIT_NPROC',
      free: (await softLimit(sources, 'Max processes')) - running - RESERVE.threads,
      remedy: 'Raise it with `ulimit -u`.',
    });
  }
  for (const group of await cgroupsOf(sources, 'pids')) {
    const [max, current] = await Promise.all([
      readText(path.join(group, 'pids.max')),
      readText(path.join(group, 'pids.current')),
    ]);
    if (max === undefined) continue;
    limits.push({
      ...threads,
      name: `pids.max of ${relative(cgroup, group)}`,
      free: toNumber(max) - finite(toNumber(current)) - RESERVE.threads,
      remedy: 'Raise it for the cgroup.',
    });
  }
  return limits;
}

async function readMemory(sources: LimitSources): Promise<ForkLimit[]> {
  const { proc, cgroup } = sources;
  const memory = { perVm: VM_COST.kernelBytes, unit: 'bytes of kernel memory' } as const;
  const meminfo = (await readText(`${proc}/meminfo`)) ?? '';
  const available = toNumber(/^MemAvailable:\s+(\d+) kB/m.exec(meminfo)?.[1]) * 1024;
  const limits: ForkLimit[] = [
    {
      ...memory,
      name: 'MemAvailable',
      free: available - RESERVE.bytes,
      remedy: 'Free memory, or use another host.',
    },
  ];
  for (const group of await cgroupsOf(sources, 'memory')) {
    for (const [max, current] of [
      ['memory.max', 'memory.current'],
      ['memory.limit_in_bytes', 'memory.usage_in_bytes'],
    ] as const) {
      const limit = await readText(path.join(group, max));
      if (limit === undefined) continue;
      const used = finite(toNumber(await readText(path.join(group, current))));
      limits.push({
        ...memory,
        name: `${max} of ${relative(cgroup, group)}`,
        free: toNumber(limit) - used - RESERVE.bytes,
        remedy: 'Raise it for the cgroup.',
      });
    }
  }
  return limits;
}

/** Directories of this process's control group and of those around it, innermost first. */
async function cgroupsOf(
  { proc, cgroup }: LimitSources,
  controller: 'memory' | 'pids',
): Promise<string[]> {
  const membership = (await readText(`${proc}/self/cgroup`)) ?? '';
  const groups: string[] = [];
  for (const line of membership.split('\n')) {
    const [, controllers = '', name] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (name === undefined) continue;
    // Version 2 has one hierarchy without a name; version 1 has one for each controller.
    const isUnified = controllers === '';
    if (!isUnified && !controllers.split(',').includes(controller)) continue;
    const root = isUnified ? cgroup : path.join(cgroup, controller);
    let group = path.join(root, path.normalize(name));
    for (; group.length > root.length; group = path.dirname(group)) groups.push(group);
    groups.push(root);
  }
  return groups;
}

function relative(cgroup: string, group: string): string {
  return `/${path.relative(cgroup, group)}`;
}
