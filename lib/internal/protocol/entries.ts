/** What streams of the guest carry besides bytes: entries and events. See protocol.ts. */

import { ProtocolError } from './decode.js';
import { MAX_NAME_BYTES, MAX_PATH_BYTES, WatchEvent } from './numbers.js';

const HEADER_BYTES = 4;
/** DT_WHT and beyond: nothing that a listing has. */
const MAX_DIRENT_TYPE = 15;

const SLASH = 0x2f;
const DOT = 0x2e;

/** `struct fk_dirent` and its kind: a small number, and a name. */
interface Entry {
  name: Buffer;
  type: number;
}

/** What a kind of entry may be; the header is looked at before the name has come. */
interface EntryRules {
  /** In messages. */
  readonly what: string;
  readonly maxNameBytes: number;
  isHeader(nameBytes: number, type: number): boolean;
  isName(name: Buffer): boolean;
}

/** Cuts a stream into entries. Holds at most one of them. */
class EntryDecoder {
  readonly #rules: EntryRules;
  #rest: Buffer = Buffer.alloc(0);

  constructor(rules: EntryRules) {
    this.#rules = rules;
  }

  push(bytes: Uint8Array): Entry[] {
    const input = this.#rest.length > 0 ? Buffer.concat([this.#rest, bytes]) : Buffer.from(bytes);
    const { maxNameBytes, isHeader, isName } = this.#rules;
    const entries: Entry[] = [];
    let at = 0;
    while (input.length - at >= HEADER_BYTES) {
      const size = input.readUInt16LE(at);
      const type = input.readUInt8(at + 2);
      const reserved = input.readUInt8(at + 3);
      if (size > maxNameBytes || reserved !== 0 || !isHeader(size, type)) this.#fail();
      const start = at + HEADER_BYTES;
      if (input.length - start < size) break;
      const name = input.subarray(start, start + size);
      if (!isName(name)) this.#fail();
      entries.push({ name, type });
      at = start + size;
    }
    this.#rest = Buffer.from(input.subarray(at));
    return entries;
  }

  /** The stream is over: throws when it ended inside an entry. */
  end(): void {
    if (this.#rest.length > 0) throw new ProtocolError(`${this.#rules.what} ends inside an entry`);
  }

  #fail(): never {
    throw new ProtocolError(`malformed entry of a ${this.#rules.what}`);
  }
}

/** Whether bytes are a name that an entry of a Linux directory can have. */
export function isName(name: Buffer): boolean {
  if (name.length < 1 || name.length > MAX_NAME_BYTES) return false;
  // A name with a slash would lead callers who join it to a path somewhere else.
  if (name.includes(0) || name.includes(SLASH)) return false;
  return name.length > 2 || !name.every((byte) => byte === DOT);
}

/** Whether bytes are names with slashes between them, so that they lead nowhere but down. */
function isPathBelow(path: Buffer): boolean {
  let start = 0;
  for (;;) {
    const slash = path.indexOf(SLASH, start);
    if (!isName(path.subarray(start, slash < 0 ? path.length : slash))) return false;
    if (slash < 0) return true;
    start = slash + 1;
  }
}

/** One entry of a directory listing. `type` is a DT_* number of `<dirent.h>`. */
export interface DirentRecord {
  /** Of a tree, the path below the directory that was asked for. */
  name: Buffer;
  type: number;
}

/** Cuts the output stream of a readdir into entries. */
export class DirentDecoder extends EntryDecoder {
  constructor({ recursive = false }: { recursive?: boolean } = {}) {
    super({
      what: 'directory listing',
      maxNameBytes: recursive ? MAX_PATH_BYTES : MAX_NAME_BYTES,
      isHeader: (nameBytes, type) => nameBytes > 0 && type <= MAX_DIRENT_TYPE,
      isName: recursive ? isPathBelow : isName,
    });
  }
}

/** Something that a watch tells of. */
export interface WatchRecord {
  /** One of {@link WatchEvent}. */
  type: number;
  /** The path below the one that is watched; empty is that one itself, or none. */
  name: Buffer;
}

/** Cuts the output stream of a watch into events. */
export class WatchDecoder extends EntryDecoder {
  constructor() {
    super({
      what: 'watch',
      maxNameBytes: MAX_PATH_BYTES,
      isHeader: (nameBytes, type) =>
        type === WatchEvent.rename || type === WatchEvent.change
          ? true
          : nameBytes === 0 && (type === WatchEvent.overflow || type === WatchEvent.ready),
      isName: (name) => name.length === 0 || isPathBelow(name),
    });
  }
}
