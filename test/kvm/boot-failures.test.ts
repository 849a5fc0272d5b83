import diagnostics_channel from 'node:diagnostics_channel';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';

import { doctor, MiB, Vm, VmError, type VmOptions } from '../../lib/index.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { patience } from '../helpers/patience.js';
import { settledCounts } from '../helpers/process-counts.js';
import {
  DoorbellEvent,
  elf,
  fault,
  print,
  ring,
  spin,
  TinyKernels,
} from '../helpers/tiny-kernel.js';

let kernels: TinyKernels;
let directory: string;

beforeAll(() => {
  kernels = new TinyKernels();
  directory = mkdtempSync(path.join(tmpdir(), 'forklet-boot-'));
});

afterEach(() => {
  vi.unstubAllEnvs();
});

afterAll(() => {
  kernels.remove();
  rmSync(directory, { recursive: true });
});

async function failure(options: VmOptions): Promise<VmError> {
  const vm = await Vm.create(options).catch((error: unknown) => error as VmError);
  if (vm instanceof Vm) {
    await vm.close();
    throw new Error('the VM booted');
  }
  return vm;
}

describe('without KVM', () => {
  test.each([
    ['missing', '/nonexistent/kvm', 'open', -2],
    ['not a KVM device', '/dev/null', 'KVM_GET_API_VERSION', -25],
  ])(
    'a device that is %s is ERR_VM_KVM_UNAVAILABLE, and doctor() says the same',
    async (_, device, syscall, errno) => {
      vi.stubEnv('FORKLET_KVM', device);

      const error = await failure({ kernel: kernels.write(spin) });
      const report = await doctor();

      expect(error).toMatchObject({ code: 'ERR_VM_KVM_UNAVAILABLE', syscall, errno });
      expect(error.message).toContain(device);
      const check = report.checks.find(({ found }) => found.includes(device));
      expect(check).toMatchObject({ ok: false });
      expect(check?.remedy).not.toBe('');
      expect(report.ok).toBe(false);
    },
  );
});

describe.runIf(hasKvm)('a kernel', () => {
  test.each([
    ['that is missing', () => '/nonexistent/vmlinux', /vmlinux.*ENOENT/],
    [
      'that is a text',
      () => kernels.writeFile(Buffer.from('#!/bin/sh\n'.repeat(99))),
      /kernel-\d+/,
    ],
    ['that is empty', () => kernels.writeFile(Buffer.alloc(0)), /kernel-\d+/],
    ['of another machine', () => kernels.writeFile(elf(spin, { machine: 183 })), /AArch64/],
    ['that is truncated', () => kernels.writeFile(elf(spin, { fileBytes: 4096 })), /truncated/],
    [
      'with a segment outside memory',
      () => kernels.writeFile(elf(spin, { address: 4096 * MiB })),
      /outside/,
    ],
    [
      'with a segment below 1 MiB',
      () => kernels.writeFile(elf(spin, { address: 0x1000 })),
      /below 1 MiB/,
    ],
  ])('%s is ERR_VM_BAD_KERNEL and leaves nothing behind', async (_, write, message) => {
    const kernel = write();
    await failure({ kernel });
    const before = await settledCounts();

    const error = await failure({ kernel });

    expect(error).toBeInstanceOf(VmError);
    expect(error.code).toBe('ERR_VM_BAD_KERNEL');
    expect(error.message).toMatch(message);
    expect(error.message).toContain(kernel);
    expect(await settledCounts()).toEqual(before);
  });
});

test('modules that are missing are ERR_VM_BAD_KERNEL', async () => {
  const error = await failure({ kernel: kernels.write(spin), modules: '/nonexistent/modules' });

  expect(error).toMatchObject({ code: 'ERR_VM_BAD_KERNEL', errno: -2, syscall: 'open' });
  expect(error.message).toContain('/nonexistent/modules');
});

describe('a root', () => {
  test.each([
    ['that is missing', () => '/nonexistent/root', /nonexistent.*ENOENT/],
    ['that is neither directory nor file', () => '/dev/null', /neither/],
    [
      'that is no archive',
      () => {
        const file = path.join(directory, 'text');
        writeFileSync(file, 'some text');
        return file;
      },
      /not a cpio archive/,
    ],
  ])('%s is ERR_VM_BAD_ROOT', async (_, make, message) => {
    const error = await failure({ kernel: kernels.write(spin), root: make() });

    expect(error.code).toBe('ERR_VM_BAD_ROOT');
    expect(error.message).toMatch(message);
  });

  test('that does not fit into memory is ERR_VM_NO_MEMORY', async () => {
    const error = await failure({
      kernel: kernels.write(spin),
      root: '/usr/bin',
      memoryBytes: 32 * MiB,
    });

    expect(error).toMatchObject({ code: 'ERR_VM_NO_MEMORY' });
    expect(error.message).toContain('memoryBytes');
  });
});

describe.runIf(hasKvm)('a guest that stops while it boots', () => {
  test.each([
    ['powers off', ring(DoorbellEvent.powerOff), 'power-off'],
    ['panics', ring(DoorbellEvent.panic), 'panic'],
    ['asks for a restart', ring(DoorbellEvent.restart), 'restart'],
    ['halts', ring(DoorbellEvent.halt), 'halt'],
    ['faults without a handler', fault, 'triple-fault'],
  ])(
    'because it %s is ERR_VM_EXITED with the reason and its console’s end',
    async (_, code, reason) => {
      const kernel = kernels.write(print('last \x1b[1mwords\r\n'), code);

      const error = await failure({ kernel });

      expect(error).toMatchObject({ name: 'VmError', code: 'ERR_VM_EXITED' });
      expect(error.message).toContain(reason);
      expect(error.detail).toBe('last \\x1b[1mwords\n');
      expect(error.stack).toContain('boot-failures.test.ts');
    },
  );

  test('is published on the diagnostics channels', async () => {
    const messages: unknown[] = [];
    const listener = (message: unknown): void => void messages.push(message);
    for (const name of ['forklet:create', 'forklet:exit']) {
      diagnostics_channel.subscribe(name, listener);
    }
    await failure({
      kernel: kernels.write(ring(DoorbellEvent.panic)),
      vcpus: 2,
      env: { KEY: 'x' },
    });
    for (const name of ['forklet:create', 'forklet:exit']) {
      diagnostics_channel.unsubscribe(name, listener);
    }

    expect(messages).toMatchObject([
      { operation: 'exit', outcome: 'ok', result: { reason: 'panic' } },
      {
        operation: 'create',
        arguments: { vcpus: 2, env: ['KEY'] },
        outcome: 'error',
        errorCode: 'ERR_VM_EXITED',
      },
    ]);
  });

  test('leaves nothing behind', async () => {
    const kernel = kernels.write(print('x'), fault);
    await failure({ kernel });
    const before = await settledCounts();

    for (let i = 0; i < 5; i++) await failure({ kernel });

    expect(await settledCounts()).toEqual(before);
  });
});

describe.runIf(hasKvm)('a boot that does not end', () => {
  test('is ERR_VM_BOOT_TIMEOUT with the console’s end, and the VM is gone', async () => {
    const kernel = kernels.write(print('still here'), spin);
    const bootTimeoutMs = patience(300);
    await failure({ kernel, bootTimeoutMs });
    const before = await settledCounts();

    const error = await failure({ kernel, bootTimeoutMs });

    expect(error).toMatchObject({ code: 'ERR_VM_BOOT_TIMEOUT', detail: 'still here' });
    expect(error.message).toContain(`${bootTimeoutMs} ms`);
    expect(await settledCounts()).toEqual(before);
  });

  test('is ended by an abort, with an AbortError', async () => {
    const controller = new AbortController();
    const creation = failure({ kernel: kernels.write(spin), signal: controller.signal });
    setTimeout(() => controller.abort('enough'), patience(100));

    expect(await creation).toMatchObject({
      name: 'AbortError',
      code: 'ABORT_ERR',
      cause: 'enough',
    });
  });

  test('does not begin when the signal was aborted before', async () => {
    const error = await failure({ kernel: kernels.write(spin), signal: AbortSignal.abort() });

    expect(error).toMatchObject({ name: 'AbortError' });
  });
});

describe.runIf(hasKvm)('doctor()', () => {
  test('finds this host fit, with a backend and every check', async () => {
    const report = await doctor();

    expect(report.checks.filter(({ ok }) => !ok)).toEqual([]);
    expect(report.ok).toBe(true);
    expect(report.checks.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['platform', 'addon', 'guest kernel', 'guest agent', 'guest root']),
    );
  });

  test('names the kind of KVM, with the quirks that such a host has', async () => {
    const { backend, quirks } = await doctor();

    const kinds: Record<string, { module: string; quirks: readonly string[][] }> = {
      vmx: { module: 'kvm_intel', quirks: [[]] },
      // The second is QEMU's emulation of SVM, in the svm lane.
      svm: { module: 'kvm_amd', quirks: [[], ['xsetbv-unseen']] },
      pvm: {
        module: 'kvm_pvm',
        quirks: [['cpuid-unmasked', 'emulated-supervisor', 'shadow-paging', 'host-tsc']],
      },
    };
    expect(readdirSync('/sys/module')).toContain(kinds[backend]?.module);
    expect(kinds[backend]?.quirks).toContainEqual(quirks);
  });

  test('names the file that is missing and the variable that asked for it', async () => {
    vi.stubEnv('FORKLET_KERNEL', '/nonexistent/vmlinux');

    const report = await doctor();

    expect(report.checks.find(({ name }) => name === 'guest kernel')).toMatchObject({
      ok: false,
      found: '/nonexistent/vmlinux: ENOENT',
      remedy: expect.stringContaining('FORKLET_KERNEL') as string,
    });
  });
});
