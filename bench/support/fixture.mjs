// What the benches share: a VM, the program that stands parked in it, and its frozen image, in
// memory and on disk. Each is made when it is first asked for.

import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { Vm } from '../../dist/index.js';
import { runReference } from './reference.mjs';

const TOUCH = new URL('../../out/bench/touch', import.meta.url);
const BOOT_TIMEOUT_MS = 300_000;

/** Input of the guest's program: to how many pages it writes. The answer is the same. */
export function touch(pages) {
  const input = Buffer.alloc(4);
  input.writeUInt32LE(pages);
  return input;
}

/** Whether the program did so. */
export function expectTouched(answer, pages) {
  if (answer.length === 4 && answer.readUInt32LE() === pages) return;
  throw new Error(`The guest's program answered ${answer.toString('hex')} to ${pages} pages`);
}

export class Fixture {
  /** Pages that the parked program can write to, apart from each other */
  pages;
  boots = [];
  #memoryBytes;
  #vm;
  #snapshot;
  #directory;

  constructor({ memoryBytes, pages }) {
    this.#memoryBytes = memoryBytes;
    this.pages = pages;
  }

  /** Boots a VM, which the caller closes. `options` are those of Vm.create(). */
  async boot(options) {
    const vm = await Vm.create({
      ...(this.#memoryBytes && { memoryBytes: this.#memoryBytes }),
      bootTimeoutMs: BOOT_TIMEOUT_MS,
      ...options,
    });
    this.boots.push(vm.timings);
    return vm;
  }

  /** A booted VM, which nothing runs in. */
  vm() {
    this.#vm ??= this.boot();
    return this.#vm;
  }

  /** A snapshot of it with the program at its park. */
  snapshot() {
    this.#snapshot ??= this.#freeze();
    return this.#snapshot;
  }

  async #freeze() {
    const vm = await this.vm();
    await vm.fs.writeFile('/tmp/touch', await readFile(TOUCH), { mode: 0o755 });
    const program = vm.exec(['/tmp/touch', String(this.pages)]);
    const ended = program.then(({ exitCode, stderr }) => {
      throw new Error(`The guest's program ended with ${exitCode}: ${stderr}`);
    });
    ended.catch(() => {});
    return await Promise.race([vm.snapshot({ at: 'program', timeoutMs: BOOT_TIMEOUT_MS }), ended]);
  }

  /** The same snapshot on disk. */
  directory() {
    this.#directory ??= this.#save();
    return this.#directory;
  }

  async #save() {
    const snapshot = await this.snapshot();
    const parent = await mkdtemp(join(tmpdir(), 'forklet-bench-'));
    await snapshot.save(join(parent, 'snapshot'));
    return { parent, path: join(parent, 'snapshot') };
  }

  /** Times of the reference with that snapshot; see `runReference`. */
  async reference(options) {
    const { path } = await this.directory();
    return await runReference(path, options);
  }

  async close() {
    const parts = await Promise.allSettled([this.#snapshot, this.#vm, this.#directory]);
    const [snapshot, vm, directory] = parts.map(({ value }) => value);
    await snapshot?.close();
    await vm?.close();
    if (directory !== undefined) await rm(directory.parent, { recursive: true });
  }
}
