// The cpio format "newc", which Linux unpacks an initramfs from. No I/O.
//
// See Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

/** What the kernel makes of an entry: the type bits of `st_mode`. */
export const FileKind = {
  fifo: 0o010000,
  characterDevice: 0o020000,
  directory: 0o040000,
  blockDevice: 0o060000,
  regular: 0o100000,
  symlink: 0o120000,
  socket: 0o140000,
} as const;
export const KIND_MASK = 0o170000;

/** Bytes that a file's contents can have: its size is a 32-bit number. */
export const MAX_FILE_BYTES = 0xffff_ffff;

const HEADER_BYTES = 110;
const ALIGNMENT = 4;
/** Contents that start at a multiple of this can be moved into the guest's files, not copied. */
const PAGE_BYTES = 4096;
const TRAILER = 'TRAILER!!!';
/** PATH_MAX of Linux, with the NUL: longer names and symlinks are not unpacked. */
const MAX_PATH_BYTES = 4096;

export interface CpioEntry {
  /** Relative to the root, without a leading slash; bytes, since Linux names need not be UTF-8. */
  readonly path: string | Uint8Array;
  /** Kind and permission bits. */
  readonly mode: number;
  readonly uid?: number;
  readonly gid?: number;
  /** Seconds since 1970. */
  readonly mtime?: number;
  /** Of a device. */
  readonly major?: number;
  readonly minor?: number;
  /** Contents, or a symbolic link's target. */
  readonly data?: Uint8Array;
  /** Size of contents that the caller streams behind {@link CpioWriter.header}, with padding. */
  readonly dataBytes?: number;
  /** Entries with the same number are one file; the first carries the contents. */
  readonly inode?: number;
  readonly links?: number;
}

/** Zero bytes that follow `size` bytes of contents. */
export function padding(size: number): Uint8Array {
  return new Uint8Array((ALIGNMENT - (size % ALIGNMENT)) % ALIGNMENT);
}

/** Zero bytes up to the next page boundary, so that an archive behind them keeps its alignment. */
export function pagePadding(offset: number): Uint8Array {
  return new Uint8Array((PAGE_BYTES - (offset % PAGE_BYTES)) % PAGE_BYTES);
}

/** As many zeros, or none when there is no room for them. */
function zerosToPage(offset: number, room: number): number {
  const zeros = pagePadding(offset).length;
  return zeros < room ? zeros : 0;
}

function field(value: number): string {
  return value.toString(16).toUpperCase().padStart(8, '0');
}

/** Makes an archive's pieces. Each is a multiple of 4 bytes long, streamed contents apart. */
export class CpioWriter {
  // Numbers of our own: those of the host have more bits than the format.
  #nextInode = 1;

  /** A number for {@link CpioEntry.inode}. */
  newInode(): number {
    return this.#nextInode++;
  }

  /**
   * The header of an entry with its name, for a place `offset` bytes into the image that the
   * kernel is given. Zeros behind the name, which every kernel accepts, make the contents of a
   * regular file of at least a page start at a page boundary.
   */
  header(entry: CpioEntry, offset: number): Buffer {
    const name = typeof entry.path === 'string' ? Buffer.from(entry.path) : entry.path;
    if (name.byteLength === 0 || name.byteLength >= MAX_PATH_BYTES) {
      throw new RangeError(`Path of ${name.byteLength} bytes`);
    }
    const dataBytes = entry.data?.byteLength ?? entry.dataBytes ?? 0;
    if (dataBytes > MAX_FILE_BYTES) throw new RangeError(`File of ${dataBytes} bytes`);
    const isRegular = (entry.mode & KIND_MASK) === FileKind.regular;
    const nameBytes =
      name.byteLength +
      1 +
      (isRegular && dataBytes >= PAGE_BYTES
        ? zerosToPage(offset + HEADER_BYTES + name.byteLength + 1, MAX_PATH_BYTES - name.byteLength)
        : 0);
    const text = [
      entry.inode ?? this.newInode(),
      entry.mode,
      entry.uid ?? 0,
      entry.gid ?? 0,
      entry.links ?? 1,
      entry.mtime ?? 0,
      dataBytes,
      0,
      0,
      entry.major ?? 0,
      entry.minor ?? 0,
      nameBytes,
      0,
    ];
    const used = HEADER_BYTES + nameBytes;
    const buffer = Buffer.alloc(used + padding(used).length);
    buffer.write(`070701${text.map(field).join('')}`, 'latin1');
    buffer.set(name, HEADER_BYTES);
    return buffer;
  }

  /** A whole entry whose contents are at hand, at `offset` as in {@link header}. */
  entry(entry: CpioEntry, offset: number): Buffer {
    const data = entry.data ?? new Uint8Array(0);
    return Buffer.concat([this.header(entry, offset), data, padding(data.byteLength)]);
  }

  /** What ends an archive. Another may follow it. */
  trailer(): Buffer {
    return this.header({ path: TRAILER, mode: 0, inode: 0 }, 0);
  }
}

/** The bytes are not an archive that Linux would unpack. */
export class CpioError extends Error {
  override readonly name = 'CpioError';
}

const COMPRESSIONS: readonly (readonly [name: string, magic: string])[] = [
  ['gzip', '1f8b'],
  ['bzip2', '425a68'],
  ['xz', 'fd377a585a00'],
  ['lzma', '5d0000'],
  ['lzop', '894c5a4f'],
  ['lz4', '02214c18'],
  ['lz4', '04224d18'],
  ['zstd', '28b52ffd'],
];

function describeForeign(start: Buffer): string {
  const hex = start.toString('hex');
  const compression = COMPRESSIONS.find(([, magic]) => hex.startsWith(magic));
  if (compression) return `is compressed with ${compression[0]}; unpack it first`;
  const text = start.toString('latin1');
  if (text.startsWith('070707') || hex.startsWith('c771') || hex.startsWith('71c7')) {
    return "is a cpio archive of an older format; make it with 'cpio -o -H newc'";
  }
  return 'is not a cpio archive';
}

/**
 * Checks an archive that is read piece by piece, or several behind each other: nothing but entries
 * that are complete, and a trailer at the end.
 */
export class CpioScanner {
  /** The part of a header or a name that has arrived. */
  #held = Buffer.alloc(0);
  /** Bytes that are held before they are looked at. */
  #wanted = HEADER_BYTES;
  #header: { size: number; nameBytes: number } | null = null;
  /** Contents and padding to be skipped. */
  #skip = 0;
  #position = 0;
  #afterTrailer = false;

  /** Bytes that have been looked at. */
  get position(): number {
    return this.#position;
  }

  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#skip > 0) {
        const count = Math.min(this.#skip, chunk.length - at);
        this.#skip -= count;
        this.#advance(count);
        at += count;
        continue;
      }
      // Between archives there may be zeros.
      if (this.#afterTrailer && this.#held.length === 0 && chunk[at] === 0) {
        this.#advance(1);
        at += 1;
        continue;
      }
      const count = Math.min(this.#wanted - this.#held.length, chunk.length - at);
      this.#held = Buffer.concat([this.#held, chunk.subarray(at, at + count)]);
      this.#advance(count);
      at += count;
      this.#checkMagic();
      if (this.#held.length === this.#wanted) this.#take();
    }
  }

  /** The archive is over; throws when something is missing. */
  end(): void {
    if (this.#position === 0) throw new CpioError('is empty');
    if (this.#held.length > 0) this.#checkMagic(true);
    // The padding behind the trailer may be missing.
    if (this.#held.length > 0 || this.#header || !this.#afterTrailer) {
      throw new CpioError(`is truncated: it ends inside an entry at byte ${this.#position}`);
    }
  }

  #advance(count: number): void {
    this.#position += count;
  }

  // As soon as possible, since a foreign file may be shorter than a header.
  #checkMagic(complete = false): void {
    if (this.#header || (this.#held.length < 6 && !complete)) return;
    const magic = this.#held.toString('latin1', 0, 6);
    if (magic === '070701' || magic === '070702') {
      const start = this.#position - this.#held.length;
      if (start % ALIGNMENT === 0) return;
      throw new CpioError(`has an entry at byte ${start}, which is not a multiple of 4`);
    }
    const start = this.#position - this.#held.length;
    if (start === 0) throw new CpioError(describeForeign(this.#held));
    throw new CpioError(`is damaged: no entry at byte ${start} (${describeForeign(this.#held)})`);
  }

  #take(): void {
    if (!this.#header) {
      this.#takeHeader();
      return;
    }
    const { size, nameBytes } = this.#header;
    const name = this.#held;
    // One NUL ends the name; more of them may align the contents.
    const end = name.indexOf(0);
    if (end < 1 || name.subarray(end).some((byte) => byte !== 0)) {
      throw new CpioError(`is damaged: malformed name before byte ${this.#position}`);
    }
    this.#held = Buffer.alloc(0);
    this.#header = null;
    this.#wanted = HEADER_BYTES;
    this.#afterTrailer = name.toString('latin1', 0, end) === TRAILER;
    this.#skip = padding(HEADER_BYTES + nameBytes).length + size + padding(size).length;
  }

  #takeHeader(): void {
    const text = this.#held.toString('latin1');
    if (!/^[0-9a-fA-F]{110}$/.test(text)) {
      const start = this.#position - HEADER_BYTES;
      throw new CpioError(`is damaged: malformed header at byte ${start}`);
    }
    const number = (index: number) =>
      Number.parseInt(text.substring(6 + 8 * index, 14 + 8 * index), 16);
    const nameBytes = number(11);
    if (nameBytes < 1 || nameBytes > MAX_PATH_BYTES) {
      throw new CpioError(`is damaged: name of ${nameBytes} bytes before byte ${this.#position}`);
    }
    this.#header = { size: number(6), nameBytes };
    this.#held = Buffer.alloc(0);
    this.#wanted = nameBytes;
    this.#afterTrailer = false;
  }
}
