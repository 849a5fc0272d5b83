import { beforeAll, describe, expect, test } from 'vitest';

import { compileGuestProgram } from '../helpers/guest-programs.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { sharedVm } from '../helpers/shared-vm.js';

const PROGRAM = '/tmp/forklet_device';

// Results that are negative are errnos: -1 EPERM, -11 EAGAIN, -22 EINVAL.
const FOR_EVERYBODY = {
  'doorbell, reading': 0,
  'mailbox, reading': 0,
  'exchange, reading': 0,
  'exchange, writing': 0,
  'exchange, executing': -1,
  'exchange, private': -22,
  'part of the exchange': -22,
  'behind the exchange': -22,
  'doorbell and mailbox': -22,
  nothing: -22,
  'half a count': -22,
  'no call': -11,
  polled: 0,
};

function results(stdout: string): Record<string, number> {
  const lines = stdout.trim().split('\n');
  return Object.fromEntries(
    lines.map((line) => {
      const [what = '', result] = line.split(': ');
      return [what, Number(result)];
    }),
  );
}

describe.runIf(hasKvm)('/dev/forklet', () => {
  const shared = sharedVm();

  beforeAll(async () => {
    await shared.vm.fs.writeFile(PROGRAM, compileGuestProgram('forklet_device'), { mode: 0o755 });
  });

  test('lets root map everything', async () => {
    const { stdout } = await shared.vm.exec([PROGRAM, 'map']);

    expect(results(stdout)).toEqual({
      ...FOR_EVERYBODY,
      'doorbell, writing': 0,
      'mailbox, writing': 0,
    });
  });

  test('lets others write nothing but the exchange', async () => {
    const { stdout } = await shared.vm.exec([PROGRAM, 'map', 'user']);

    expect(results(stdout)).toEqual({
      ...FOR_EVERYBODY,
      'doorbell, writing': -1,
      'mailbox, writing': -1,
    });
  });

  test('has an exchange that keeps what is written to its last page', async () => {
    await shared.vm.exec([PROGRAM, 'mark', '20261125'], { check: true });

    const { stdout } = await shared.vm.exec([PROGRAM, 'show']);

    expect(stdout).toBe('20261125');
  });

  test('has a read that waits, and that a signal ends', async () => {
    const waiting = shared.vm.exec([PROGRAM, 'wait']);
    const lines = waiting.lines();
    expect(await lines.next()).toMatchObject({ value: 'waiting' });
    const other = await shared.vm.exec('cat /proc/interrupts');

    waiting.kill('SIGTERM');

    expect(other.stdout).toMatch(/^ *7: +0 .*IO-APIC +7-edge +forklet$/m);
    expect(await waiting.exited).toMatchObject({ signal: 'SIGTERM' });
  });
});
