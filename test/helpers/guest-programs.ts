// Programs for test guests, compiled here and written into them.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const sources = fileURLToPath(new URL('../kvm/programs/', import.meta.url));

const FLAGS = [
  '-std=c11',
  '-O1',
  '-Wall',
  '-Wextra',
  '-Werror',
  '-static',
  '-nostdlib',
  '-ffreestanding',
  '-fno-stack-protector',
  '-fno-pie',
  '-no-pie',
  '-mno-avx',
  '-Wl,--build-id=none',
  '-Wl,-z,max-page-size=4096',
  '-s',
];

/** Compiles `test/kvm/programs/NAME.c` into a static program of a few kilobytes. */
export function compileGuestProgram(name: string): Buffer {
  const directory = mkdtempSync(path.join(tmpdir(), 'forklet-program-'));
  try {
    const output = path.join(directory, name);
    execFileSync('gcc', [...FLAGS, '-o', output, path.join(sources, `${name}.c`)]);
    return readFileSync(output);
  } finally {
    rmSync(directory, { recursive: true });
  }
}
