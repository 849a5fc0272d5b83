// The host of a parked program that runs on this machine: see park/fake_host.h.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';

const sources = fileURLToPath(new URL('../../guest/park/', import.meta.url));
const fakes = fileURLToPath(new URL('./park/', import.meta.url));

const PAGE = 4096;
const EXCHANGE = 2 * PAGE;
const DATA = EXCHANGE + 256;
/** Most that a request or an answer can have. */
export const DATA_BYTES = 15 * PAGE - 256;

export const SANITIZED = ['-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'];

/** Compiles `guest/park/NAME` for this machine, into `directory`. */
export function compileParked(directory: string, name: string, flags: readonly string[]): string {
  const output = join(directory, name.replace(/\W/g, '-'));
  const lua = name.includes('lua');
  execFileSync('gcc', [
    ...['-std=gnu11', '-D_GNU_SOURCE', '-Wall', '-Wextra', '-Werror', ...flags],
    ...['-include', join(fakes, 'fake_host.h'), '-o', output, join(sources, name)],
    ...(lua ? ['-I/usr/include/lua5.4', '-l:liblua5.4.a', '-lm', '-ldl'] : []),
  ]);
  return output;
}

export interface Request {
  state?: number;
  version?: number;
  /** Defaults to those of the input. */
  inputBytes?: number;
  sequence?: bigint;
  generation?: bigint;
  entropy?: Uint8Array;
  /** What the doorbell reads as. */
  held?: number;
}

export interface Answer {
  error: number;
  output: string;
}

export class ParkHost {
  readonly directory = mkdtempSync(join(tmpdir(), 'forklet-park-'));
  readonly exited: Promise<{ code: number | null; stdout: string; stderr: string }>;
  readonly pid: number;
  readonly #device: number;
  readonly #child: ChildProcess;
  readonly #go: Writable;
  #parks: number[] = [];
  #wake: () => void = () => {};

  constructor(command: string, args: readonly string[] = []) {
    const path = join(this.directory, 'device');
    this.#device = openSync(path, 'w+');
    ftruncateSync(this.#device, 17 * PAGE);
    this.#child = spawn(command, args, {
      env: { PATH: process.env['PATH'] ?? '', FORKLET_TEST_DEVICE: path },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe', 'pipe'],
    });
    this.pid = this.#child.pid ?? 0;
    this.#go = this.#child.stdio[3] as Writable;
    this.#go.on('error', () => {});
    (this.#child.stdio[4] as Readable).on('data', (bytes: Buffer) => {
      this.#parks.push(...bytes);
      this.#wake();
    });
    const text = { stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr'] as const) {
      this.#child[name]?.on('data', (bytes: Buffer) => {
        text[name] += bytes.toString();
      });
    }
    this.exited = once(this.#child, 'close').then(([code]) => {
      this.#wake();
      return { code, ...text };
    });
  }

  /** Resolves when the program stands still: with the offset of the register that it reads. */
  async parked(): Promise<number> {
    while (this.#parks.length === 0) {
      if (this.#child.exitCode !== null) throw new Error('The program has exited');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#parks.shift() as number;
  }

  /** Lets the program go; it has to be parked. */
  letGo(input: string | Uint8Array, request: Request = {}): void {
    const bytes = Buffer.from(input as string);
    const header = Buffer.alloc(128);
    header.writeUInt32LE(request.version ?? 1, 0);
    header.writeUInt32LE(request.state ?? 1, 4);
    header.writeUInt32LE(request.inputBytes ?? bytes.length, 8);
    // What a program that forgets to answer would leave.
    header.writeUInt32LE(0xdead, 12);
    header.writeUInt32LE(0xdead, 16);
    header.writeBigUInt64LE(request.sequence ?? 1n, 24);
    header.writeBigUInt64LE(request.generation ?? 1n, 32);
    header.set(request.entropy ?? [], 40);
    writeSync(this.#device, header, 0, header.length, EXCHANGE);
    writeSync(this.#device, bytes, 0, bytes.length, DATA);
    this.#go.write(Buffer.from([request.held ?? 1]));
  }

  /** The answer, once the program has parked again. */
  answer(): Answer {
    const header = Buffer.alloc(128);
    readSync(this.#device, header, 0, header.length, EXCHANGE);
    const output = Buffer.alloc(Math.min(header.readUInt32LE(12), DATA_BYTES));
    readSync(this.#device, output, 0, output.length, DATA);
    return { error: header.readUInt32LE(16), output: output.toString() };
  }

  /** One request, of a program that is parked, until it is parked again. */
  async call(input: string | Uint8Array, request: Request = {}): Promise<Answer> {
    this.letGo(input, request);
    await this.parked();
    return this.answer();
  }

  /** Goes away; the program ends. */
  async close() {
    this.#go.end();
    const exit = await this.exited;
    closeSync(this.#device);
    rmSync(this.directory, { recursive: true });
    return exit;
  }
}

/** forklet_park.py with test/helpers/park/fake_host.py. */
export function pythonHost(): ParkHost {
  return new ParkHost('python3', ['-B', join(fakes, 'fake_host.py'), sources]);
}
