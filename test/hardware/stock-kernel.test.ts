import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { describe, expect, test } from 'vitest';

import { Vm, type VmError, type VmExit, type VmOptions } from '../../lib/index.js';
import { hasHardwareKvm } from '../helpers/hardware-kvm.js';
import { sharedVm } from '../helpers/shared-vm.js';

// Debian's kernel for virtual machines as its package has it: a bzImage with an LZ4 payload, virtio
// and vsock as modules, and devices to be found by ACPI. It knows nothing of forklet.

const script = fileURLToPath(new URL('../../scripts/svm/stock-kernel', import.meta.url));

function stockKernel(): { release: string; options: VmOptions } {
  const directory = execFileSync(script, ['--print-path'], { encoding: 'utf8' }).trim();
  const name = readFileSync(path.join(directory, 'package'), 'utf8');
  return {
    release: name.replace(/^linux-image-(.*)=.*\n$/s, '$1'),
    options: {
      kernel: path.join(directory, 'vmlinuz'),
      modules: path.join(directory, 'modules'),
      bootTimeoutMs: 110_000,
    },
  };
}

/** Runs a command that ends the VM. */
async function last(vm: Vm, command: readonly string[]): Promise<VmExit> {
  vm.exec(command).catch(() => {});
  return await vm.exited;
}

describe.runIf(hasHardwareKvm)('Debian’s own kernel', () => {
  const stock = hasHardwareKvm ? stockKernel() : { release: '', options: {} };

  // The last test ends the VM.
  describe('with its modules', () => {
    const shared = sharedVm(stock.options);

    test('boots and runs a command', async () => {
      const { stdout } = await shared.vm.exec(['uname', '-r']);

      expect(stdout).toBe(`${stock.release}\n`);
    });

    test('takes files', async () => {
      await shared.vm.fs.writeFile('/tmp/file', 'contents');

      expect(await shared.vm.fs.readFile('/tmp/file', 'utf8')).toBe('contents');
    });

    test('finds devices by ACPI, without an error', async () => {
      const devices = await shared.vm.fs.readdir('/sys/bus/acpi/devices');
      const { stdout } = await shared.vm.exec('dmesg | grep -E "ACPI.*(Error|Warning|BUG)"; true');

      expect(devices).toEqual(expect.arrayContaining(['PNP0501:00', 'LNRO0005:00', 'LNRO0005:01']));
      expect(stdout).toBe('');
    });

    test('has drivers for the devices, whose interrupts arrive', async () => {
      const drivers = await shared.vm.fs.readdir('/sys/bus/virtio/drivers');
      const entropy = await shared.vm.fs.readFile('/sys/class/misc/hw_random/rng_current', 'utf8');
      const interrupts = await shared.vm.fs.readFile('/proc/interrupts', 'utf8');

      expect(drivers).toEqual(expect.arrayContaining(['vmw_vsock_virtio_transport', 'virtio_rng']));
      expect(entropy).toBe('virtio_rng.0\n');
      expect(interrupts).toMatch(/ [1-9]\d* +IO-APIC +5-edge +virtio0$/m);
      expect(interrupts).toMatch(/ [1-9]\d* +IO-APIC +6-edge +virtio1$/m);
      expect(interrupts).toMatch(/IO-APIC +4-edge +ttyS0$/m);
    });

    test('lets root reach the pages that our own offers as /dev/forklet', async () => {
      const { stdout, stderr } = await shared.vm.exec(
        'for page in 0x9e000 0xd0000000; do busybox devmem $page 32; done',
      );

      expect(stderr).toBe('');
      expect(stdout).toMatch(/^0x[0-9A-F]{8}\n0x00000000\n$/);
    });

    test('is forked, and its fork powers off alone', async () => {
      await shared.vm.fs.writeFile('/tmp/before', 'the parent’s');
      const fork = await shared.vm.fork();
      await fork.ready;

      expect(await fork.fs.readFile('/tmp/before', 'utf8')).toBe('the parent’s');
      expect((await last(fork, ['poweroff', '-f'])).reason).toBe('power-off');
      expect((await shared.vm.exec(['true'])).ok).toBe(true);
      await fork.close();
    });

    test('powers off by ACPI', async () => {
      const exit = await last(shared.vm, ['poweroff', '-f']);

      expect(exit).toMatchObject({ reason: 'power-off', detail: 'the guest powered off' });
      expect(exit.console).toContain('reboot: Power down');
    });
  });

  describe('with two vCPUs and reboot=a', () => {
    const shared = sharedVm({ ...stock.options, vcpus: 2, kernelArgs: 'reboot=a' });

    test('brings both up', async () => {
      const { stdout } = await shared.vm.exec(['busybox', 'nproc']);

      expect(stdout).toBe('2\n');
    });

    test('restarts by ACPI, which ends the VM', async () => {
      const exit = await last(shared.vm, ['reboot', '-f']);

      expect(exit.reason).toBe('restart');
    });
  });

  test('without its modules is ERR_VM_EXITED, and the console says why', async () => {
    const { modules: _, ...options } = stock.options;

    const error = await Vm.create(options).catch((reason: unknown) => reason as VmError);

    expect(error).toMatchObject({
      code: 'ERR_VM_EXITED',
      message: expect.stringContaining('power-off') as string,
      detail: expect.stringMatching(
        /forklet-agent: cannot reach the host over vsock: Address family/,
      ) as string,
    });
  });
});
