import { afterAll, describe, expect, test } from 'vitest';
import { MiB } from '../../lib/index.js';
import { Core, type VmListener } from '../../lib/internal/core.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { TinyKernels } from '../helpers/tiny-kernel.js';

/** The guest is ahead of the news in some of a hundred, if it can be. */
const ROUNDS = 100;

/** Stands at its park, writes the next number to the serial port, and so on. */
const COUNTER = Buffer.from([
  // xor ebx, ebx; mov edi, 0xd0000010; mov dx, 0x3f8
  0x31, 0xdb, 0xbf, 0x10, 0x00, 0x00, 0xd0, 0x66, 0xba, 0xf8, 0x03,
  // next: mov eax, [rdi]; mov al, bl; out dx, al; inc bl; jmp next
  0x8b, 0x07, 0x88, 0xd8, 0xee, 0xfe, 0xc3, 0xeb, 0xf7,
]);

/** Remembers the first number and the last; of a flood, those in between may be lost. */
class Console implements VmListener {
  last: number | undefined;
  #first: number | undefined;
  #onNumber: () => void = () => {};

  onConsole(data: Uint8Array): void {
    this.#first ??= data[0];
    this.last = data.at(-1);
    this.#onNumber();
  }

  async first(): Promise<number | undefined> {
    if (this.#first === undefined) await new Promise<void>((done) => (this.#onNumber = done));
    return this.#first;
  }

  onExit(): void {}
  onConnectionOpened(): void {}
  onConnectionData(): void {}
  onConnectionSent(): void {}
  onConnectionClosed(): void {}
}

describe.runIf(hasKvm)('what a program says behind its park', () => {
  const kernels = new TinyKernels();
  afterAll(() => kernels.remove());

  test('reaches the host after the news of its freeze, so that a fork says it as well', async () => {
    const core = Core.get();
    const parent = new Console();
    const vm = core.newVm();
    core.listen(vm, parent);
    await core.request((id) =>
      core.native.createVm(id, vm, {
        memoryBytes: 32 * MiB,
        vcpus: 1,
        kvmPath: '/dev/kvm',
        kernelPath: kernels.write(COUNTER),
        kernelArgs: '',
        initramfs: [],
      }),
    );

    const said: (number | undefined)[] = [];
    const repeated: (number | undefined)[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const snapshot = core.newSnapshot();
      const saidBefore = await core.request(
        (id) => core.native.snapshotVm(id, vm, snapshot, 'program', 10_000),
        () => parent.last ?? -1,
      );
      const fork = new Console();
      const forked = core.newVm();
      core.listen(forked, fork);
      await core.requestUnlessNow((id) =>
        core.native.forkSnapshot(id, snapshot, forked, 'never', ''),
      );
      core.native.enterVm(forked);
      repeated.push(await fork.first());
      said.push((saidBefore + 1) % 256);
      await core.request((id) => core.native.closeVm(id, forked));
      await core.request((id) => core.native.closeSnapshot(id, snapshot));
    }
    await core.request((id) => core.native.closeVm(id, vm));

    expect(repeated).toEqual(said);
  });
});
