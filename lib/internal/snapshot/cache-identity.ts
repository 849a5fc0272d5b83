// What decides whether two recipes come to the same snapshot.

import { createHash } from 'node:crypto';
import { createReadStream, readFileSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';

import type { NativeProbe } from '../../native.js';
import type { CheckedVmOptions } from '../../options.js';
import { kvmPath } from '../boot/artifacts.js';
import { prepareBoot } from '../boot/prepare-boot.js';
import { Core } from '../core.js';

/** Raised when the same recipe would come to another snapshot. */
const IDENTITY_VERSION = 1;

/** What a recipe says besides the options of its VM. */
export interface RecipeNames {
  readonly key: string;
  readonly at: string;
}

/** 64 hexadecimal digits. Packs the root to learn what is in it. */
export async function snapshotIdentity(
  { key, at }: RecipeNames,
  options: CheckedVmOptions,
): Promise<string> {
  // Of files the contents count, and how long a boot may take does not.
  const { env, kernel: _kernel, root: _root, modules: _modules, ...rest } = options;
  const { bootTimeoutMs: _bootTimeoutMs, signal: _signal, ...machine } = rest;
  const { kernelPath, initramfs } = await prepareBoot(options);
  const root = createHash('sha256');
  for (const segment of initramfs) root.update(segment);
  const variables = Object.entries(env).map(([name, value]) => [name, value ?? null]);
  const identity = {
    identity: IDENTITY_VERSION,
    key,
    at,
    machine,
    env: variables.sort(([a], [b]) => (String(a) < String(b) ? -1 : 1)),
    kernel: await hashFile(kernelPath),
    root: root.digest('hex'),
    version: packageVersion(),
    processor: await processorFeatures(),
    host: await hostQuirks(),
  };
  return createHash('sha256').update(JSON.stringify(identity)).digest('hex');
}

let version: string | undefined;

/** Of this package. */
export function packageVersion(): string {
  if (version === undefined) {
    const manifest = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
    version = (JSON.parse(manifest) as { version: string }).version;
  }
  return version;
}

const hashes = new Map<string, { readonly of: string; readonly hash: string }>();

/** SHA-256 of a file, kept as long as the file looks the same. */
async function hashFile(file: string): Promise<string> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await stat(file, { bigint: true });
  const of = [dev, ino, size, mtimeNs, ctimeNs].join(' ');
  const known = hashes.get(file);
  if (known?.of === of) return known.hash;
  const digest = createHash('sha256');
  await pipeline(createReadStream(file), digest);
  const hash = digest.digest('hex');
  hashes.set(file, { of, hash });
  return hash;
}

/** Vendor and features as the host's kernel tells them, of the first processor. */
async function processorFeatures(): Promise<readonly string[]> {
  const text = await readFile('/proc/cpuinfo', 'utf8').catch(() => '');
  const value = (name: string): string =>
    new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(text)?.[1] ?? '';
  return [value('vendor_id'), ...value('flags').split(' ').sort()];
}

let probed: { readonly kvm: string; readonly probe: Promise<NativeProbe> } | undefined;

/** What the library works around on this host, which is asked once. */
async function hostQuirks(): Promise<readonly string[]> {
  const kvm = kvmPath();
  if (probed?.kvm !== kvm) {
    const core = Core.get();
    probed = { kvm, probe: core.request<NativeProbe>((id) => core.native.probe(id, kvm)) };
  }
  const { backend, quirks } = await probed.probe;
  return [backend, ...quirks];
}
