// Programs that import the built package and end in ways that a test process cannot.

import { type ChildProcessByStdio, spawn } from 'node:child_process';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { fileURLToPath, pathToFileURL } from 'node:url';

import { slowdown } from './patience.js';

const entry = pathToFileURL(fileURLToPath(new URL('../../dist/index.js', import.meta.url))).href;

export interface ChildResult {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly durationMs: number;
}

export interface ChildOptions {
  readonly execArgv?: readonly string[];
  /** The child finds them in `process.env`. */
  readonly env?: Readonly<Record<string, string>>;
  /** Called with the child once it runs. */
  readonly onStart?: (child: ChildProcessByStdio<null, Readable, Readable>) => void;
}

/** Runs an ES module that finds `Vm`, `MiB` and `doctor` imported, and `patience` defined. */
export async function runChild(source: string, options: ChildOptions = {}): Promise<ChildResult> {
  const program = `import { Vm, MiB, doctor } from ${JSON.stringify(entry)};
    const patience = (ms) => ms * ${slowdown};
    ${source}`;
  const start = performance.now();
  const child = spawn(
    process.execPath,
    [...(options.execArgv ?? []), '--input-type=module', '--eval', program],
    { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...options.env } },
  );
  options.onStart?.(child);
  const exited = new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
    child.on('close', (exitCode, signal) => resolve([exitCode, signal]));
  });
  const [stdout, stderr, [exitCode, signal]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    exited,
  ]);
  return { exitCode, signal, stdout, stderr, durationMs: performance.now() - start };
}
