import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** An empty project on a machine whose PATH has Node, npm and a shell, and no compiler. */
export class Project {
  readonly directory: string;
  readonly #bin: string;

  private constructor(directory: string, bin: string) {
    this.directory = directory;
    this.#bin = bin;
  }

  static async create(): Promise<Project> {
    const root = await mkdtemp(join(tmpdir(), 'forklet-package-'));
    const directory = join(root, 'project');
    const bin = join(root, 'bin');
    await mkdir(directory);
    await mkdir(bin);
    await symlink(process.execPath, join(bin, 'node'));
    for (const tool of ['sh', 'env']) await symlink(`/usr/bin/${tool}`, join(bin, tool));
    const manifest = { name: 'empty', version: '1.0.0', private: true, type: 'module' };
    await writeFile(join(directory, 'package.json'), JSON.stringify(manifest));
    return new Project(directory, bin);
  }

  /** Runs a program of the PATH in the project and collects what it says. */
  async run(
    command: readonly [string, ...string[]],
    options: { env?: Record<string, string>; timeoutMs?: number } = {},
  ): Promise<Finished> {
    const [program, ...args] = command;
    const child = spawn(program, args, {
      cwd: this.directory,
      env: {
        ...inherited(),
        PATH: this.#bin,
        // Only what the package carries counts.
        PREBUILDS_ONLY: '1',
        ...options.env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: options.timeoutMs ?? 120_000,
      killSignal: 'SIGKILL',
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    });
    return { code, stdout, stderr };
  }

  /** Runs npm, which is a script beside Node and not on the project's PATH. */
  npm(args: readonly string[], env: Record<string, string> = {}): Promise<Finished> {
    return this.run(['node', npmCli(), ...args], { env, timeoutMs: 300_000 });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(dirname(this.directory), { recursive: true, force: true });
  }
}

/** The environment that a user's shell would have, without what this test run has set up. */
function inherited(): Record<string, string> {
  const kept: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env)) {
    if (value === undefined) continue;
    if (/^(npm_|FORKLET_|VITEST|NODE_ENV$|NODE_OPTIONS$|TEST$)/.test(name)) continue;
    kept[name] = value;
  }
  return kept;
}

function npmCli(): string {
  return process.env['npm_execpath'] ?? '/usr/lib/node_modules/npm/bin/npm-cli.js';
}
