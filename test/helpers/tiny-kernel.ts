// Kernels of a few instructions, for what a VM does before and without Linux: they start in 64-bit
// mode with the first 4 GiB mapped one to one, and take milliseconds where Linux takes seconds.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const LOAD_ADDRESS = 0x100000;
const ELF_HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;

/** The doorbell's events. */
export const DoorbellEvent = { powerOff: 1, panic: 2, restart: 3, halt: 4 } as const;

export interface ElfOptions {
  /** `e_machine`; 62 is x86-64. */
  readonly machine?: number;
  /** Physical address of the only segment. */
  readonly address?: number;
  /** Size that the segment claims to have in the file. */
  readonly fileBytes?: number;
}

/** An ELF executable of one segment that is entered at its start. */
export function elf(code: Uint8Array, options: ElfOptions = {}): Buffer {
  const { machine = 62, address = LOAD_ADDRESS, fileBytes = code.length } = options;
  const header = Buffer.alloc(ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES);
  header.write('\x7fELF', 'latin1');
  header.set([2, 1, 1], 4);
  header.writeUInt16LE(2, 16);
  header.writeUInt16LE(machine, 18);
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(BigInt(address), 24);
  header.writeBigUInt64LE(BigInt(ELF_HEADER_BYTES), 32);
  header.writeUInt16LE(ELF_HEADER_BYTES, 52);
  header.writeUInt16LE(PROGRAM_HEADER_BYTES, 54);
  header.writeUInt16LE(1, 56);
  const segment = header.subarray(ELF_HEADER_BYTES);
  segment.writeUInt32LE(1, 0);
  segment.writeUInt32LE(5, 4);
  segment.writeBigUInt64LE(BigInt(header.length), 8);
  segment.writeBigUInt64LE(BigInt(address), 16);
  segment.writeBigUInt64LE(BigInt(address), 24);
  segment.writeBigUInt64LE(BigInt(fileBytes), 32);
  segment.writeBigUInt64LE(BigInt(Math.max(fileBytes, code.length)), 40);
  return Buffer.concat([header, code]);
}

/** Writes text to the serial port. */
export function print(text: string): Buffer {
  const bytes = [...Buffer.from(text, 'latin1')];
  // mov dx, 0x3f8; then for each byte: mov al, byte; out dx, al
  return Buffer.from([0x66, 0xba, 0xf8, 0x03, ...bytes.flatMap((byte) => [0xb0, byte, 0xee])]);
}

/** Rings the doorbell. */
export function ring(event: number): Buffer {
  // mov edi, 0xd0000000; mov dword [rdi], event
  return Buffer.from([0xbf, 0x00, 0x00, 0x00, 0xd0, 0xc7, 0x07, event, 0, 0, 0]);
}

/** Runs for ever. */
export const spin = Buffer.from([0xeb, 0xfe]);

/** An invalid instruction without anybody to handle it. */
export const fault = Buffer.from([0x0f, 0x0b]);

/** A directory for the kernels of one test file. */
export class TinyKernels {
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'forklet-kernel-'));
  #count = 0;

  /** Puts a kernel together and returns its path. */
  write(...parts: Uint8Array[]): string {
    return this.writeFile(elf(Buffer.concat(parts)));
  }

  writeFile(content: Uint8Array): string {
    const file = path.join(this.#directory, `kernel-${this.#count++}`);
    writeFileSync(file, content);
    return file;
  }

  remove(): void {
    rmSync(this.#directory, { recursive: true });
  }
}
