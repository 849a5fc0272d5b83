/** How much of a VM's serial console is kept, in bytes. */
export const CONSOLE_BYTES = 64 * 1024;

/** How much of it goes into an error, in bytes. */
const TAIL_BYTES = 2048;

/** The last {@link CONSOLE_BYTES} of what a guest wrote to its serial console. */
export class ConsoleBuffer {
  // Ring of fixed size: a guest that writes for ever costs no more than one that wrote 64 KiB.
  #ring: Buffer | undefined;
  #end = 0;
  #length = 0;

  append(data: Uint8Array): void {
    this.#ring ??= Buffer.alloc(CONSOLE_BYTES);
    const kept = data.length > CONSOLE_BYTES ? data.subarray(data.length - CONSOLE_BYTES) : data;
    const first = Math.min(kept.length, CONSOLE_BYTES - this.#end);
    this.#ring.set(kept.subarray(0, first), this.#end);
    this.#ring.set(kept.subarray(first), 0);
    this.#end = (this.#end + kept.length) % CONSOLE_BYTES;
    this.#length = Math.min(CONSOLE_BYTES, this.#length + kept.length);
  }

  #bytes(): Buffer {
    if (this.#ring === undefined) return Buffer.alloc(0);
    if (this.#length < CONSOLE_BYTES) return this.#ring.subarray(0, this.#length);
    return Buffer.concat([this.#ring.subarray(this.#end), this.#ring.subarray(0, this.#end)]);
  }

  /** Everything kept, as the guest wrote it. */
  toString(): string {
    return this.#bytes().toString('utf8');
  }

  /** The end, safe to print: for errors. */
  tail(): string {
    const bytes = this.#bytes();
    return escapeControl(bytes.subarray(Math.max(0, bytes.length - TAIL_BYTES)).toString('utf8'));
  }
}

/**
 * Escapes everything that could move the cursor or change a terminal's state, so that a guest
 * cannot write to the terminal of whoever prints an error. Line ends stay.
 */
export function escapeControl(text: string): string {
  return text
    .replaceAll('\r\n', '\n')
    .replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, (char) => {
      const code = char.charCodeAt(0);
      return code < 0x100
        ? `\\x${code.toString(16).padStart(2, '0')}`
        : `\\u${code.toString(16).padStart(4, '0')}`;
    });
}
