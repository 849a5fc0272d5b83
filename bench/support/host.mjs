// What the figures were measured on, and how much of it is in use.

import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { promisify } from 'node:util';

import { doctor } from '../../dist/index.js';

const execute = promisify(execFile);

async function git(...args) {
  const { stdout } = await execute('git', args).catch(() => ({ stdout: '' }));
  return stdout.trim();
}

export async function describeHost() {
  const { backend, quirks } = await doctor();
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    kvm: { backend, quirks },
    node: process.version,
    loadAverage: loadavg()[0],
    commit: await git('rev-parse', 'HEAD'),
    clean: (await git('status', '--porcelain')) === '',
  };
}

async function field(path, name) {
  const line = (await readFile(path, 'utf8')).split('\n').find((l) => l.startsWith(`${name}:`));
  if (line === undefined) throw new Error(`${path} has no ${name}`);
  return Number.parseInt(line.slice(name.length + 1), 10) * 1024;
}

/** As the reference says it of itself. */
export async function memoryInUse() {
  return {
    pssBytes: await field('/proc/self/smaps_rollup', 'Pss'),
    availableBytes: await field('/proc/meminfo', 'MemAvailable'),
    freeBytes: await field('/proc/meminfo', 'MemFree'),
  };
}

/** Bytes that each of `count` VMs has cost, by each of the readings. */
export function memoryPerVm(before, after, count) {
  const each = (bytes) => Math.round(bytes / count);
  return {
    pssBytes: each(after.pssBytes - before.pssBytes),
    availableBytes: each(before.availableBytes - after.availableBytes),
    freeBytes: each(before.freeBytes - after.freeBytes),
  };
}
