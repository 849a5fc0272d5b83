import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

import { describe, expect, test } from 'vitest';

import { formatReport } from '../../lib/cli/doctor.js';
import { signalExitCode, UsageError } from '../../lib/cli/exit-codes.js';
import { parseRunArguments, parseShellArguments } from '../../lib/cli/run-options.js';
import { formatList } from '../../lib/cli/snapshot.js';
import { parseBuildArguments } from '../../lib/cli/snapshot-options.js';
import { MiB } from '../../lib/index.js';

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

function forkletIn(env: Readonly<Record<string, string>>, ...args: string[]): Ended {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  return { status, stdout, stderr };
}

function forklet(...args: string[]): Ended {
  return forkletIn({}, ...args);
}

describe('forklet shell arguments', () => {
  test('need no command', () => {
    const { vm, command } = parseShellArguments(['--memory', '64M']);

    expect(vm).toEqual({ memoryBytes: 64 * MiB });
    expect(command).toEqual(['/bin/sh']);
  });

  test('may have one, behind two dashes', () => {
    expect(parseShellArguments(['--cwd', '/tmp', '--', 'vi', '--'])).toMatchObject({
      exec: { cwd: '/tmp' },
      command: ['vi', '--'],
    });
  });

  test.each([
    ['a command without the dashes', ['vi']],
    ['dashes without a command', ['--']],
    ['an unknown option', ['--pty']],
  ])('refuse %s', (_what, args) => {
    expect(() => parseShellArguments(args)).toThrow(UsageError);
  });
});

describe('forklet run arguments', () => {
  test.each([
    ['build', 'build'],
    ['1000', 1000],
  ])('name a user: %s', (text, user) => {
    expect(parseRunArguments(['--user', text, '--', 'id']).exec).toEqual({ user });
  });

  test('become options', () => {
    const parsed = parseRunArguments([
      '--memory=256M',
      '--vcpus',
      '2',
      '--env',
      'A=b=c',
      '--env=D=',
      '--root',
      '/tree',
      '--modules=/lib/modules/6.1',
      '--cwd',
      '/tmp',
      '--timeout',
      '1.5',
      '--boot-timeout=90',
      '--forward=8080:80',
      '--forward',
      '2222:22',
      '--',
      'ls',
      '--memory',
      '--',
    ]);

    expect(parsed).toEqual({
      vm: {
        memoryBytes: 256 * MiB,
        vcpus: 2,
        env: { A: 'b=c', D: '' },
        root: '/tree',
        modules: '/lib/modules/6.1',
        bootTimeoutMs: 90_000,
      },
      exec: { cwd: '/tmp', timeoutMs: 1500 },
      forwards: [
        { hostPort: 8080, guestPort: 80 },
        { hostPort: 2222, guestPort: 22 },
      ],
      command: ['ls', '--memory', '--'],
      console: false,
    });
  });

  test.each([
    ['512', 512],
    ['64k', 64 * 1024],
    ['1G', 1024 * MiB],
    ['32MiB', 32 * MiB],
  ])('take %s as a size', (text, bytes) => {
    expect(parseRunArguments(['--memory', text, '--', 'x']).vm.memoryBytes).toBe(bytes);
  });

  test.each([
    ['no separator', ['ls']],
    ['no command', ['--']],
    ['an unknown option', ['--memroy=1', '--', 'x']],
    ['a size without sense', ['--memory=lots', '--', 'x']],
    ['a count without sense', ['--vcpus=many', '--', 'x']],
    ['a variable without value', ['--env=A', '--', 'x']],
    ['one port to forward', ['--forward=80', '--', 'x']],
    ['a port out of range', ['--forward=80:65536', '--', 'x']],
    ['a stray word', ['ls', '--', 'x']],
    ['a missing value', ['--root', '--', 'x']],
  ])('with %s are a usage error', (_, args) => {
    expect(() => parseRunArguments(args)).toThrow(UsageError);
  });
});

describe('forklet snapshot build arguments', () => {
  test('become a recipe, of which the command is a part', () => {
    const parsed = parseBuildArguments([
      '--memory=256M',
      '--at=program',
      '--output',
      'out',
      'python',
      '--',
      'python3',
      '--overwrite',
    ]);

    expect(parsed).toEqual({
      recipe: {
        key: 'python -- ["python3","--overwrite"]',
        options: { memoryBytes: 256 * MiB },
        at: 'program',
      },
      command: ['python3', '--overwrite'],
      output: 'out',
      overwrite: false,
    });
  });

  test('need no command', () => {
    expect(parseBuildArguments(['plain']).recipe).toEqual({
      key: 'plain',
      options: {},
      at: 'agent',
    });
  });

  test('of any length make a key', () => {
    const { recipe } = parseBuildArguments(['long', '--', 'x'.repeat(5000)]);

    expect(recipe.key).toMatch(/^long -- sha256:[0-9a-f]{64}$/);
  });

  test.each([
    ['no key', []],
    ['two keys', ['a', 'b']],
    ['no command behind --', ['a', '--']],
    ['an unknown place', ['--at=home', 'a']],
    ['a program without a command', ['--at=program', 'a']],
    ['an option of run', ['--cwd=/', 'a']],
  ])('with %s are a usage error', (_, args) => {
    expect(() => parseBuildArguments(args)).toThrow(UsageError);
  });
});

test('the list of snapshots says what is there, whatever a key contains', () => {
  const now = new Date('2026-01-02T00:00:00Z');
  const entry = {
    name: 'abcdef0123456789'.repeat(4),
    directory: '/cache/x',
    allocatedBytes: 20 * MiB + 1,
    modifiedAt: new Date('2026-01-01T00:00:00Z'),
  };
  const description = { key: 'a\x1b[2J\nb', at: 'agent', version: '1', memoryBytes: 128 * MiB };
  const text = formatList(
    [
      { ...entry, description },
      { ...entry, name: '0'.repeat(64), description: undefined },
    ],
    now,
  );

  expect(text).toBe(`NAME          AT     MEMORY   ON DISK  AGE   KEY
abcdef012345  agent  128 MiB  21 MiB   24 h  a\\x1b[2J b
000000000000  ?      ?        21 MiB   24 h  ?
`);
});

test.each([
  ['SIGTERM', 143],
  ['SIGKILL', 137],
  ['SIGRTMIN+3', 165],
])('a command ended by %s exits with %i', (signal, code) => {
  expect(signalExitCode(signal as NodeJS.Signals)).toBe(code);
});

describe('forklet', () => {
  test('prints its usage and its version', () => {
    expect(forklet('--help')).toMatchObject({ status: 0, stderr: '' });
    expect(forklet('--help').stdout).toContain('forklet run [options] -- command');
    expect(forklet('--version').stdout).toMatch(/^\d+\.\d+\.\d+/);
  });

  test.each([
    ['an unknown command', ['fly']],
    ['no command', []],
    ['a bad option', ['run', '--nope', '--', 'x']],
    ['half a command', ['snapshot']],
    ['an unknown half', ['snapshot', 'fly']],
    ['nothing to remove', ['snapshot', 'rm']],
    ['nothing to verify', ['snapshot', 'verify']],
    ['something to list', ['snapshot', 'ls', 'x']],
  ])('answers %s with one line and 125', (_, args) => {
    const { status, stdout, stderr } = forklet(...args);

    expect(status).toBe(125);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^forklet: [^\n]+\n$/);
  });

  test('lists an empty cache, and finds nothing in it', () => {
    const empty = { FORKLET_CACHE: '/nonexistent' };

    expect(forkletIn(empty, 'snapshot', 'ls').stdout).toBe('NAME  AT  MEMORY  ON DISK  AGE  KEY\n');
    expect(forkletIn(empty, 'snapshot', 'ls', '--json').stdout).toBe('[]\n');
    expect(forkletIn(empty, 'snapshot', 'rm', 'python')).toMatchObject({
      status: 125,
      stderr: "forklet: There is no snapshot 'python' in the cache\n",
    });
  });

  test('answers an option out of range with one line and 125', () => {
    const { status, stderr } = forklet('run', '--memory=1M', '--', 'true');

    expect(status).toBe(125);
    expect(stderr).toMatch(/^forklet: Option "memoryBytes" must be [^\n]+\n$/);
  });
});

test('the report of doctor says what is wrong and what to do', () => {
  const text = formatReport({
    ok: false,
    backend: 'none',
    quirks: [],
    checks: [
      { name: 'platform', ok: true, found: 'linux on x64', needed: '', remedy: '' },
      { name: 'kvm', ok: false, found: 'EACCES', needed: 'access', remedy: 'Join group kvm.' },
    ],
    maxForks: { count: 12, boundBy: 'RLIMIT_NOFILE' },
  });

  expect(text).toBe(`ok    platform  linux on x64
FAIL  kvm       EACCES
                needed: access
                remedy: Join group kvm.

backend: none
quirks:  none
forks:   12 more, bound by RLIMIT_NOFILE

VMs cannot run on this host.
`);
});
