import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { spin, TinyKernels } from '../helpers/tiny-kernel.js';

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

/** A terminal with a shell of this machine, whose keyboard and screen are the test's. */
class Screen {
  readonly directory = mkdtempSync(join(tmpdir(), 'forklet-shell-'));
  readonly #socket = join(this.directory, 'tmux');

  constructor() {
    // Without settings, and of a size that no terminal has by itself.
    this.#tmux('-f', '/dev/null', 'new-session', '-d', '-x', '93', '-y', '31', 'sh');
  }

  #tmux(...args: string[]): string {
    return execFileSync('tmux', ['-S', this.#socket, ...args], { encoding: 'utf8' });
  }

  type(line: string, ...keys: string[]): void {
    if (line !== '') this.#tmux('send-keys', '-l', line);
    if (keys.length > 0) this.#tmux('send-keys', ...keys);
  }

  enter(line: string): void {
    this.type(line, 'Enter');
  }

  resize(columns: number, rows: number): void {
    this.#tmux('resize-window', '-x', String(columns), '-y', String(rows));
  }

  get contents(): string {
    return this.#tmux('capture-pane', '-p');
  }

  async shows(pattern: RegExp): Promise<void> {
    const deadline = Date.now() + patience(45_000);
    while (!pattern.test(this.contents)) {
      if (Date.now() > deadline) throw new Error(`No ${pattern} on the screen:\n${this.contents}`);
      await delay(50);
    }
  }

  has(name: string): boolean {
    return existsSync(join(this.directory, name));
  }

  file(name: string): string {
    return readFileSync(join(this.directory, name), 'utf8');
  }

  /** Starts the program; its exit code and the terminal's settings behind it are in files. */
  forklet(...args: string[]): void {
    const { directory } = this;
    this.enter(
      `cd ${directory}; stty -g > before; (sh -c 'echo $PPID' > pid; ` +
        `exec ${process.execPath} ${program} shell ${args.join(' ')}); ` +
        'echo $? > code; stty -g > after; touch ended',
    );
  }

  /** Of the program. */
  get pid(): number {
    return Number(this.file('pid'));
  }

  /** Whether the program has got as far as to have a VM. */
  isBooting(): boolean {
    try {
      const directory = `/proc/${this.pid}/fd`;
      return readdirSync(directory).some((fd) =>
        readlinkSync(join(directory, fd)).includes('kvm-vm'),
      );
    } catch {
      return false;
    }
  }

  close(): void {
    this.#tmux('kill-server');
    rmSync(this.directory, { recursive: true });
  }
}

describe.runIf(hasKvm)('forklet shell', () => {
  let screen: Screen;

  beforeEach(() => {
    screen = new Screen();
  });

  afterEach(() => {
    screen.close();
  });

  /** Waits for the end; the terminal must be as it was. */
  async function exitCode(): Promise<number> {
    while (!screen.has('ended')) await delay(50);
    expect(screen.file('after')).toBe(screen.file('before'));
    return Number(screen.file('code'));
  }

  test('is a shell in the guest, as wide as the terminal and following it', async () => {
    screen.forklet("--env 'PS1=guest> '", '--user', 'nobody', '--cwd', '/tmp', '--', 'sh');
    // Typed before the prompt, a line could overtake what the shell asks its terminal.
    const prompt = /^guest>\s*$(?!.*\S)/ms;
    await screen.shows(prompt);
    expect(screen.contents).toContain('shell');
    screen.enter('id -un; pwd; stty size');
    await screen.shows(/^nobody\n\/tmp\n31 93$/m);

    await screen.shows(prompt);
    screen.enter(`sh -c 'echo star""ted; exec sleep 1000'`);
    await screen.shows(/^started$/m);
    screen.type('', 'C-c');
    await screen.shows(prompt);
    screen.enter('echo "status $?"');
    await screen.shows(/^status 130$/m);

    await screen.shows(prompt);
    screen.enter('vi text');
    await screen.shows(/^~.*text/ms);
    screen.type('ifrom the editor', 'Escape');
    // What follows an escape at once is taken for the rest of a key.
    await screen.shows(/^- text \[Modified\]/m);
    screen.enter(':wq');
    await screen.shows(prompt);
    screen.enter('clear; cat text');
    await screen.shows(/^from the editor$/m);

    await screen.shows(prompt);
    screen.enter(
      `sh -c 'trap "stty size; exit" WINCH; echo wait""ing; while sleep 0.2; do :; done'`,
    );
    await screen.shows(/^waiting$/m);
    screen.resize(70, 25);
    await screen.shows(/^25 70$/m);

    await screen.shows(prompt);
    screen.enter('exit 6');
    expect(await exitCode()).toBe(6);
  });

  test('leaves the terminal as it was when the VM dies', async () => {
    screen.forklet('--', 'sh', '-c', '\'echo rea""dy; read line; poweroff -f; sleep 1000\'');
    await screen.shows(/^ready$/m);
    screen.enter('');

    expect(await exitCode()).toBe(125);
    expect(screen.contents).toContain('ERR_VM_EXITED');
  });

  test('leaves the terminal as it was, and no VM, when it is terminated', async () => {
    const trap = '\'trap "" TERM HUP; echo rea""dy; while :; do sleep 1; done\'';
    screen.forklet('--', 'sh', '-c', trap);
    await screen.shows(/^ready$/m);

    process.kill(screen.pid, 'SIGTERM');

    expect(await exitCode()).toBe(143);
  });

  test('leaves the terminal as it was when it is interrupted while the VM boots', async () => {
    const kernels = new TinyKernels();
    screen.forklet('--kernel', kernels.write(spin));
    while (!screen.isBooting()) await delay(50);
    screen.type('', 'C-c');

    expect(await exitCode()).toBe(130);
    kernels.remove();
  });
});

test('forklet shell without a terminal names forklet run', async () => {
  const child = spawn(process.execPath, [program, 'shell']);
  child.stdin.end();
  const [stdout, stderr, [status]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close'),
  ]);

  expect(stdout).toBe('');
  expect(stderr).toMatch(/^forklet: [^\n]*not a terminal[^\n]*forklet run[^\n]*\n$/);
  expect(status).toBe(125);
});
