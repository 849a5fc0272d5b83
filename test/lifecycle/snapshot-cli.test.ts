import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { Snapshot } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

describe.runIf(hasKvm)('forklet snapshot', () => {
  let root: string;

  beforeAll(() => {
    root = mkdtempSync(path.join(tmpdir(), 'forklet-cli-'));
  });

  afterAll(() => {
    rmSync(root, { recursive: true });
  });

  async function forklet(...args: string[]) {
    const child = spawn(process.execPath, [program, 'snapshot', ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, FORKLET_CACHE: root },
    });
    const [stdout, stderr, [status]] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      once(child, 'close'),
    ]);
    return { stdout, stderr, status };
  }

  const BUILD = ['build', '--boot-timeout=115', 'mine', '--', 'sh', '-c', 'echo ready > /tmp/it'];
  const names = (): string[] => readdirSync(path.join(root, 'forklet', 'snapshots'));

  test('build makes one snapshot for two that ask at once, and finds it later', async () => {
    const [one, two] = await Promise.all([forklet(...BUILD), forklet(...BUILD)]);
    expect(one.status).toBe(0);
    expect(two.stdout).toBe(one.stdout);
    const stages = [one, two].map(({ stderr }) => stderr.match(/[a-z]+$/gm)?.join(' ')).sort();
    expect(stages).toEqual(['boot prepare snapshot save load', 'wait load']);

    const later = await forklet(...BUILD);
    expect(later).toMatchObject({ stdout: one.stdout, status: 0 });
    expect(later.stderr).toMatch(/^ +\d+\.\d s {2}load\n$/);
    expect(names()).toHaveLength(2);
    await using snapshot = await Snapshot.load(one.stdout.trim());
    await using fork = await snapshot.fork();
    expect(await fork.fs.readFile('/tmp/it', 'utf8')).toBe('ready\n');
  });

  test('ls and verify tell what is there, and whether it is sound', async () => {
    const { stdout } = await forklet('ls');
    expect(stdout).toMatch(/^NAME .*\n[0-9a-f]{12} .* agent +128 MiB .* mine -- \["sh",.*\]\n$/);
    const [entry] = JSON.parse((await forklet('ls', '--json')).stdout);
    expect(await forklet('verify', entry.name.slice(0, 8))).toEqual({
      stdout: `ok    ${entry.directory}\n`,
      stderr: '',
      status: 0,
    });

    truncateSync(path.join(entry.directory, 'memory'), 4096);
    const damaged = await forklet('verify', entry.description.key);
    expect(damaged.status).toBe(1);
    expect(damaged.stdout).toMatch(/^FAIL {2}\S+: .+\n$/);
  });

  test('build makes a damaged one again, and rm removes it', async () => {
    const output = path.join(root, 'copy');
    const built = await forklet('build', '--output', output, ...BUILD.slice(1));
    expect(built).toMatchObject({ stdout: `${output}\n`, status: 0 });
    expect(built.stderr).toContain('boot');
    await (await Snapshot.load(output)).close();

    const [entry] = JSON.parse((await forklet('ls', '--json')).stdout);
    expect(await forklet('rm', entry.name)).toMatchObject({ stdout: `${entry.name}\n`, status: 0 });
    expect(names()).toEqual([]);
  });

  test('build keeps nothing of a command that fails', async () => {
    const failed = await forklet('build', '--boot-timeout=115', 'bad', '--', 'sh', '-c', 'exit 3');

    expect(failed.status).toBe(125);
    expect(failed.stderr).toMatch(/forklet: ERR_VM_EXIT_STATUS: [^\n]*exited with code 3[^\n]*\n$/);
    expect(names()).toEqual([]);
  });
});
