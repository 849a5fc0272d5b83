import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import { readKernelModules } from '../../lib/internal/boot/kernel-modules.js';

// As Debian's 6.1 has them.
const VIRTIO_MMIO =
  'kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko';
const VSOCK =
  'kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko: kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko kernel/net/vmw_vsock/vsock.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko';
const RNG =
  'kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko';
const OTHER = 'kernel/fs/fat/fat.ko:';

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(path.join(tmpdir(), 'forklet-modules-'));
});

afterEach(() => rmSync(directory, { recursive: true }));

/** Writes both lists, and each file that modules.dep names with its own path for contents. */
function write(dep: readonly string[], builtin: readonly string[] = []): void {
  writeFileSync(path.join(directory, 'modules.dep'), dep.map((line) => `${line}\n`).join(''));
  writeFileSync(path.join(directory, 'modules.builtin'), builtin.map((l) => `${l}\n`).join(''));
  for (const name of dep.flatMap((line) => line.split(/:? +|:$/)).filter((n) => n !== '')) {
    mkdirSync(path.join(directory, path.dirname(name)), { recursive: true });
    writeFileSync(path.join(directory, name), `contents of ${name}`);
  }
}

async function names(): Promise<string[]> {
  return (await readKernelModules(directory)).map(({ fileName }) => fileName);
}

describe('readKernelModules()', () => {
  test('takes what the agent needs, each module behind its dependencies', async () => {
    write([OTHER, RNG, VSOCK, VIRTIO_MMIO]);

    const modules = await readKernelModules(directory);

    expect(modules.map(({ fileName }) => fileName)).toEqual([
      'virtio_ring.ko',
      'virtio.ko',
      'virtio_mmio.ko',
      'vsock.ko',
      'vmw_vsock_virtio_transport_common.ko',
      'vmw_vsock_virtio_transport.ko',
      'virtio-rng.ko',
    ]);
    expect(Buffer.from(modules[3]?.data ?? []).toString()).toBe(
      'contents of kernel/net/vmw_vsock/vsock.ko',
    );
  });

  test('leaves out what is built in', async () => {
    write(
      ['kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko: kernel/net/vmw_vsock/vsock.ko'],
      ['kernel/drivers/virtio/virtio_mmio.ko', 'kernel/drivers/char/hw_random/virtio-rng.ko'],
    );

    expect(await names()).toEqual(['vsock.ko', 'vmw_vsock_virtio_transport.ko']);
  });

  test('is empty for a kernel that reaches the host without modules', async () => {
    write(
      [RNG],
      [
        'kernel/drivers/virtio/virtio_mmio.ko',
        'kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko',
      ],
    );

    expect(await names()).toEqual([]);
  });

  test('does without an entropy device that the kernel knows nothing of', async () => {
    write([VIRTIO_MMIO, VSOCK]);

    expect(await names()).not.toContain('virtio-rng.ko');
  });

  test('keeps the names of compressed modules', async () => {
    write([
      'kernel/drivers/virtio/virtio_mmio.ko.xz:',
      'kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko.xz: kernel/net/vmw_vsock/vsock.ko.xz',
    ]);

    expect(await names()).toEqual([
      'virtio_mmio.ko.xz',
      'vsock.ko.xz',
      'vmw_vsock_virtio_transport.ko.xz',
    ]);
  });

  test('names the directory that is missing', async () => {
    const missing = path.join(directory, 'nowhere');

    await expect(readKernelModules(missing)).rejects.toMatchObject({
      code: 'ERR_VM_BAD_KERNEL',
      message: expect.stringContaining(missing) as string,
      errno: -2,
      syscall: 'open',
    });
  });

  test('names the module that is missing', async () => {
    write([VIRTIO_MMIO, RNG]);

    await expect(readKernelModules(directory)).rejects.toMatchObject({
      code: 'ERR_VM_BAD_KERNEL',
      message: expect.stringContaining('vmw_vsock_virtio_transport') as string,
    });
  });

  test('says that a package was unpacked and never seen by depmod', async () => {
    writeFileSync(path.join(directory, 'modules.builtin'), '');

    await expect(readKernelModules(directory)).rejects.toMatchObject({
      code: 'ERR_VM_BAD_KERNEL',
      message: expect.stringMatching(/modules\.dep.*ENOENT.*depmod/) as string,
    });
  });

  test('names the file that a list promises and the directory lacks', async () => {
    write([VIRTIO_MMIO, VSOCK]);
    rmSync(path.join(directory, 'kernel/net/vmw_vsock/vsock.ko'));

    await expect(readKernelModules(directory)).rejects.toMatchObject({
      code: 'ERR_VM_BAD_KERNEL',
      message: expect.stringMatching(/vsock\.ko.*ENOENT/) as string,
    });
  });

  test('does not wait for a FIFO in the place of a module', async () => {
    write([VIRTIO_MMIO, VSOCK]);
    const fifo = path.join(directory, 'kernel/net/vmw_vsock/vsock.ko');
    rmSync(fifo);
    execFileSync('mkfifo', [fifo]);

    await expect(readKernelModules(directory)).rejects.toMatchObject({
      code: 'ERR_VM_BAD_KERNEL',
      message: expect.stringContaining(fifo) as string,
    });
  });
});
