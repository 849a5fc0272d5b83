import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { print, spin, TinyKernels } from '../helpers/tiny-kernel.js';

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

function forklet(...args: string[]) {
  const child = spawn(process.execPath, [program, ...args]);
  const ended = Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]).then(
    ([stdout, stderr, [status, signal]]) => ({ stdout, stderr, status, signal }),
  );
  return { child, ended };
}

let kernels: TinyKernels;
let spinning: string;

beforeAll(() => {
  kernels = new TinyKernels();
  spinning = kernels.write(print('boot \x1b[5mmessages'), spin);
});

afterAll(() => {
  kernels.remove();
});

describe.runIf(hasKvm)('forklet run', () => {
  test('passes streams and exit code through', async () => {
    const { child, ended } = forklet(
      'run',
      '--env',
      'GREETING=hello',
      '--cwd=/tmp',
      '--',
      'sh',
      '-c',
      'echo $GREETING $(pwd); cat; echo err >&2; exit 3',
    );
    child.stdin.end('input\n');

    expect(await ended).toEqual({
      stdout: 'hello /tmp\ninput\n',
      stderr: 'err\n',
      status: 3,
      signal: null,
    });
  });

  test('passes signals through, and exits with 128 + n', async () => {
    const { child, ended } = forklet(
      'run',
      '--',
      'sh',
      '-c',
      'trap "echo hung up" HUP; echo ready; while :; do sleep 1; done',
    );
    let seen = '';
    child.stdout.on('data', (data: Buffer) => {
      const before = seen;
      seen += data.toString();
      if (!before.includes('ready') && seen.includes('ready')) child.kill('SIGHUP');
      if (!before.includes('hung up') && seen.includes('hung up')) child.kill('SIGTERM');
    });

    const { stdout, status } = await ended;

    expect(stdout).toBe('ready\nhung up\n');
    expect(status).toBe(143);
  });

  test('says in one line that a boot took too long, behind the console', async () => {
    const { child, ended } = forklet(
      'run',
      '--kernel',
      spinning,
      '--boot-timeout',
      String(patience(500) / 1000),
      '--',
      'true',
    );
    child.stdin.end();

    const { stdout, stderr, status } = await ended;

    expect(status).toBe(125);
    expect(stdout).toBe('');
    expect(stderr).toMatch(
      /^boot \\x1b\[5mmessages\n--- end of the guest's console ---\nforklet: ERR_VM_BOOT_TIMEOUT: [^\n]+\n$/,
    );
  });

  test('stops at once when it is interrupted while the VM boots', async () => {
    const { child, ended } = forklet('run', '--kernel', spinning, '--', 'true');
    setTimeout(() => child.kill('SIGINT'), patience(1500));

    expect(await ended).toEqual({ stdout: '', stderr: '', status: 130, signal: null });
  });

  test('says in one line why a kernel cannot be booted', async () => {
    const { ended } = forklet('run', '--kernel', '/nonexistent', '--', 'true');

    const { stderr, status } = await ended;

    expect(status).toBe(125);
    expect(stderr).toMatch(/^forklet: ERR_VM_BAD_KERNEL: [^\n]*\/nonexistent[^\n]*\n$/);
  });
});

describe.runIf(hasKvm)('forklet doctor', () => {
  test('says that this host is fit, for people and for programs', async () => {
    const [people, programs] = await Promise.all([
      forklet('doctor').ended,
      forklet('doctor', '--json').ended,
    ]);

    expect(people).toMatchObject({ status: 0, stderr: '' });
    expect(people.stdout).toContain('VMs can run on this host.');
    const report = JSON.parse(programs.stdout);
    expect(report.ok).toBe(true);
    const quirks = report.quirks.join(', ') || 'none';
    expect(people.stdout).toContain(`\nbackend: ${report.backend}\nquirks:  ${quirks}\n`);
  });
});
