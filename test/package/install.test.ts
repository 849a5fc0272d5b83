import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DEFAULT_BOOT_TIMEOUT_MS, DEFAULT_MEMORY_BYTES, DEFAULT_VCPUS } from '../../lib/options.js';
import { MiB } from '../../lib/units.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { Project } from './project.js';
import { codeBlock, readme } from './readme.js';

const execFileAsync = promisify(execFile);

const tarball = process.env['FORKLET_PACKAGE'];
if (!tarball) throw new Error('Run `npm run test:package`, which makes the package first');

const checkout = join(import.meta.dirname, '../..');
const example = codeBlock('js', 'Vm.create()');
const typescriptExample = codeBlock('ts', 'await using');

let project: Project;

beforeAll(async () => {
  project = await Project.create();
  const installed = await project.npm(['install', '--prefer-offline', tarball]);
  expect(installed.stderr).not.toMatch(/gyp|prebuild/i);
  expect(installed.code).toBe(0);
});

afterAll(async () => {
  await project[Symbol.asyncDispose]();
});

/** Where the package landed. */
function packaged(path: string): string {
  return join(project.directory, 'node_modules/forklet', path);
}

describe('the package', () => {
  test('compiles nothing at install and carries no sources of the addon', async () => {
    const { stdout } = await execFileAsync('tar', ['-tf', tarball]);
    const files = stdout.trim().split('\n');

    expect(files.filter((file) => /\.gyp|\.cc$|native\/|^package\/lib\//.test(file))).toEqual([]);
    const { default: manifest } = await import(packaged('package.json'), {
      with: { type: 'json' },
    });
    expect(manifest.scripts).toBeUndefined();
    expect(Object.keys(manifest.dependencies)).toEqual(['node-gyp-build']);
  });

  test('carries addon, kernel, agent, root file system and the texts they need', () => {
    const needed = [
      'LICENSE',
      'README.md',
      'prebuilds/linux-x64/forklet.glibc.node',
      'prebuilt/linux-x64/vmlinux',
      'prebuilt/linux-x64/agent',
      'prebuilt/linux-x64/rootfs.cpio',
      'prebuilt/linux-x64/park/forklet-park',
      'prebuilt/linux-x64/park/forklet-park.h',
      'prebuilt/linux-x64/park/forklet_park.py',
      'prebuilt/linux-x64/NOTICE.md',
      'prebuilt/linux-x64/kernel-source/SOURCE.md',
      'prebuilt/linux-x64/kernel-source/COPYING',
      'prebuilt/linux-x64/kernel-source/GPL-2.0',
      'prebuilt/linux-x64/kernel-source/config',
      'prebuilt/linux-x64/kernel-source/build',
    ];

    expect(needed.filter((path) => !existsSync(packaged(path)))).toEqual([]);
  });

  test('has an addon that needs no library beyond those of Node and glibc 2.34', async () => {
    const addon = packaged('prebuilds/linux-x64/forklet.glibc.node');

    const { stdout: dynamic } = await execFileAsync('readelf', ['-dW', addon]);
    const { stdout: symbols } = await execFileAsync('objdump', ['-T', addon]);

    const libraries = [...dynamic.matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1]);
    expect(libraries.sort()).toEqual(['ld-linux-x86-64.so.2', 'libc.so.6', 'libgcc_s.so.1']);
    expect(dynamic).toMatch(/NODELETE/);
    expect(dynamic).not.toMatch(/TEXTREL/);
    const glibc = [...symbols.matchAll(/GLIBC_2\.(\d+)/g)].map((match) => Number(match[1]));
    expect(Math.max(...glibc)).toBeLessThanOrEqual(34);
    const exported = [...symbols.matchAll(/ g .*\.text.* (\S+)$/gm)].map((match) => match[1]);
    expect(exported.sort()).toEqual([
      'napi_register_module_v1',
      'node_api_module_get_api_version_v1',
    ]);
  });
});

describe.runIf(hasKvm)('the installed package, without a compiler', () => {
  test("runs README's example as pasted", async () => {
    await writeFile(join(project.directory, 'example.mjs'), example);

    const { code, stdout, stderr } = await project.run(['node', 'example.mjs']);

    expect(stderr).toBe('');
    expect(stdout).toBe('apple\npear\n Linux\n 3\napple\npear\n\n');
    expect(code).toBe(0);
  });

  test("runs README's TypeScript example, compiled against the package's types", async () => {
    await writeFile(join(project.directory, 'using.ts'), typescriptExample);
    const options = ['--target', 'es2022', '--module', 'nodenext', '--strict', '--skipLibCheck'];
    const libraries = ['--lib', 'es2023,esnext.disposable', '--types', 'node'];
    const roots = ['--typeRoots', join(checkout, 'node_modules/@types')];
    await execFileAsync(
      join(checkout, 'node_modules/.bin/tsc'),
      [...options, ...libraries, ...roots, 'using.ts'],
      { cwd: project.directory },
    );

    const { code, stdout, stderr } = await project.run(['node', 'using.js']);

    expect(stderr).toBe('');
    expect(stdout).toBe('one\ntwo\nworker\n\n');
    expect(code).toBe(0);
  });

  test("runs README's command line with streams apart and the exit code passed on", async () => {
    const line = codeBlock('sh', 'npx forklet run').trim().replace(/^npx /, './node_modules/.bin/');

    const { code, stdout, stderr } = await project.run(['sh', '-c', line]);

    expect(stdout).toBe('out\n');
    expect(stderr).toBe('err\n');
    expect(code).toBe(3);
  });

  test('says in doctor that all is well', async () => {
    const { code, stderr } = await project.run(['node', packaged('dist/cli/main.js'), 'doctor']);

    expect(stderr).toBe('');
    expect(code).toBe(0);
  });
});

describe('the installed package, where it cannot run', () => {
  const asMac = encodeURIComponent(
    `for (const [key, value] of [['platform', 'darwin'], ['arch', 'arm64']])
       Object.defineProperty(process, key, { value });`,
  );
  const report = `
    import { doctor, Vm } from 'forklet';
    const { ok, checks } = await doctor();
    const failed = checks.filter((check) => !check.ok);
    const error = await Vm.create().then(() => undefined, (error) => error);
    console.log(JSON.stringify({ ok, failed, code: error?.code, message: error?.message }));
  `;

  test.each([
    {
      host: 'without KVM',
      env: { FORKLET_KVM: '/nonexistent/kvm' },
      says: /\/nonexistent\/kvm/,
    },
    {
      host: 'of another platform',
      env: { NODE_OPTIONS: `--import=data:text/javascript,${asMac}` },
      says: /darwin/,
    },
  ])('imports, and explains itself, on a host $host', async ({ env, says }) => {
    await writeFile(join(project.directory, 'report.mjs'), report);

    const { code, stdout, stderr } = await project.run(['node', 'report.mjs'], { env });

    expect(stderr).toBe('');
    expect(code).toBe(0);
    const result = JSON.parse(stdout);
    expect(result.ok).toBe(false);
    expect(result.code).toBe('ERR_VM_KVM_UNAVAILABLE');
    expect(result.message).toMatch(says);
    expect(JSON.stringify(result.failed)).toMatch(says);
    expect(result.failed.every((check: { remedy: string }) => check.remedy !== '')).toBe(true);
  });

  test('installs for another platform', async () => {
    await using other = await Project.create();

    const { code, stderr } = await other.npm(
      ['install', '--prefer-offline', '--os=darwin', '--cpu=arm64', tarball],
      { npm_config_platform: 'darwin', npm_config_arch: 'arm64' },
    );

    expect(stderr).not.toMatch(/npm error/);
    expect(code).toBe(0);
  });
});

describe('README', () => {
  test('states the defaults that the code has', () => {
    const stated = readme.match(
      /has (\d+) MiB of memory and (\d+) vCPUs?, .*?answered within (\d+) s/s,
    );

    expect(stated?.slice(1).map(Number)).toEqual([
      DEFAULT_MEMORY_BYTES / MiB,
      DEFAULT_VCPUS,
      DEFAULT_BOOT_TIMEOUT_MS / 1000,
    ]);
  });

  test('links to files that exist', () => {
    const links = [...readme.matchAll(/\]\((?!https?:)([^)#]+)/g)].map((match) => match[1] ?? '');

    expect(links.length).toBeGreaterThan(0);
    expect(links.filter((link) => !existsSync(packaged(link)))).toEqual([]);
  });

  test('warns that there is no confinement yet', () => {
    expect(readme).toMatch(/Until confinement exists.*buggy rather than\s+adversarial/s);
  });
});
