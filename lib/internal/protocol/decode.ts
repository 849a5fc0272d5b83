/** Frames from the guest: bytes in, checked messages out. See protocol.ts. */

import {
  ExecStage,
  FrameType,
  HEADER_BYTES,
  MAX_PATH_BYTES,
  MAX_PAYLOAD_BYTES,
  type OutputStream,
  RECORD_HEADER_BYTES,
  RenewStage,
  Stream,
  Tag,
} from './numbers.js';

const STAT_BYTES = 96;
const MAX_ERRNO = 4095;

/** The guest sent bytes that no correct agent sends. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError';
}

/** One frame as it is on the wire. */
export interface Frame {
  type: number;
  stream: number;
  id: number;
  value: number;
  offset: number;
  /** Of a `renewed` frame; other frames have an offset there. */
  generation: bigint;
  payload: Buffer;
}

/**
 * Cuts a byte stream into frames, however it was split into chunks. Holds at most one frame.
 *
 * Payloads may be views of the chunk that was pushed: the caller gives the chunk away.
 */
export class FrameDecoder {
  #header = Buffer.allocUnsafe(HEADER_BYTES);
  #headerBytes = 0;
  #payload: Buffer | null = null;
  #payloadBytes = 0;
  #failure: ProtocolError | null = null;

  /** Bytes of an incomplete frame that are held back. */
  get pendingBytes(): number {
    return this.#headerBytes + this.#payloadBytes;
  }

  /** Those bytes; pushed into another decoder they continue there. */
  get pending(): Buffer {
    const payload = this.#payload?.subarray(0, this.#payloadBytes) ?? Buffer.alloc(0);
    return Buffer.concat([this.#header.subarray(0, this.#headerBytes), payload]);
  }

  /** Returns the frames that are complete with this chunk. After it threw once it always throws. */
  push(chunk: Uint8Array): Frame[] {
    if (this.#failure) throw this.#failure;
    const input = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    const frames: Frame[] = [];
    let at = 0;
    while (at < input.length) {
      if (this.#headerBytes < HEADER_BYTES) {
        const count = Math.min(HEADER_BYTES - this.#headerBytes, input.length - at);
        input.copy(this.#header, this.#headerBytes, at, at + count);
        this.#headerBytes += count;
        at += count;
        if (this.#headerBytes < HEADER_BYTES) break;
      }
      const size = this.#header.readUInt32LE(0);
      if (size > MAX_PAYLOAD_BYTES) {
        this.#failure = new ProtocolError(`frame of ${size} bytes exceeds ${MAX_PAYLOAD_BYTES}`);
        this.#payload = null;
        throw this.#failure;
      }
      if (this.#payload === null && input.length - at >= size) {
        frames.push(this.#finish(input.subarray(at, at + size)));
        at += size;
        continue;
      }
      this.#payload ??= Buffer.allocUnsafe(size);
      const count = Math.min(size - this.#payloadBytes, input.length - at);
      input.copy(this.#payload, this.#payloadBytes, at, at + count);
      this.#payloadBytes += count;
      at += count;
      if (this.#payloadBytes === size) frames.push(this.#finish(this.#payload));
    }
    return frames;
  }

  #finish(payload: Buffer): Frame {
    const header = this.#header;
    const type = header.readUInt16LE(4);
    const wide = header.readBigUInt64LE(16);
    const isGeneration = type === FrameType.renewed;
    const offset = isGeneration ? 0n : wide;
    if (offset > BigInt(Number.MAX_SAFE_INTEGER)) {
      this.#failure = new ProtocolError(`offset ${offset} is out of range`);
      throw this.#failure;
    }
    this.#headerBytes = 0;
    this.#payload = null;
    this.#payloadBytes = 0;
    return {
      type,
      stream: header.readUInt16LE(6),
      id: header.readUInt32LE(8),
      value: header.readUInt32LE(12),
      offset: Number(offset),
      generation: isGeneration ? wide : 0n,
      payload,
    };
  }
}

/** `struct fk_stat`: the fields of stat(2). Times in nanoseconds since 1970. */
export interface StatRecord {
  dev: bigint;
  ino: bigint;
  nlink: bigint;
  rdev: bigint;
  size: bigint;
  blocks: bigint;
  atimeNs: bigint;
  mtimeNs: bigint;
  ctimeNs: bigint;
  birthtimeNs: bigint;
  mode: number;
  uid: number;
  gid: number;
  blksize: number;
}

export interface ReplyMessage {
  type: 'reply';
  id: number;
  /** 0, or a Linux errno (positive). */
  errno: number;
  /** Where starting a command failed: one of {@link ExecStage}. */
  stage: number | null;
  exitCode: number | null;
  signal: number | null;
  stat: StatRecord | null;
  /** What a link or a path leads to, or where in a tree it failed; never empty, without NUL. */
  path: Buffer | null;
}

/** The guest has been made unique, or could not be. */
export interface RenewedMessage {
  type: 'renewed';
  generation: bigint;
  /** 0, or the Linux errno of the first step that failed. */
  errno: number;
  /** What failed: one of {@link RenewStage}; null exactly when nothing did. */
  stage: number | null;
  /** File name of the hook that failed. */
  hook: string | null;
  /** How that hook ended, if it ran. */
  exitCode: number | null;
  signal: number | null;
}

export type GuestMessage =
  | { type: 'hello'; version: number; kernel: string; agent: string }
  | { type: 'started'; id: number; pid: number }
  | { type: 'connected'; id: number }
  | { type: 'data'; id: number; stream: OutputStream; offset: number; bytes: Buffer }
  | { type: 'end'; id: number; stream: OutputStream; offset: number }
  | { type: 'window'; id: number; limit: number }
  | ReplyMessage
  | RenewedMessage
  | { type: 'fatal'; reason: string };

/** Interprets a frame of the guest; throws {@link ProtocolError} unless all of it is in order. */
export function parseGuestMessage(frame: Frame): GuestMessage {
  const { type, id, value, offset, payload } = frame;
  switch (type) {
    case FrameType.hello:
      expectZero(frame, 'stream', 'id', 'offset');
      return parseHello(frame);
    case FrameType.started:
      expectZero(frame, 'stream', 'offset');
      expectEmpty(frame);
      if (value < 1 || value > 0x7fff_ffff) throw new ProtocolError(`pid ${value} out of range`);
      return { type: 'started', id, pid: value };
    case FrameType.connected:
      expectZero(frame, 'stream', 'value', 'offset');
      expectEmpty(frame);
      return { type: 'connected', id };
    case FrameType.data:
      expectZero(frame, 'value');
      if (payload.length === 0) throw new ProtocolError('data frame without data');
      if (!Number.isSafeInteger(offset + payload.length)) {
        throw new ProtocolError(`offset ${offset} is out of range`);
      }
      return { type: 'data', id, stream: outputStream(frame), offset, bytes: payload };
    case FrameType.end:
      expectZero(frame, 'value');
      expectEmpty(frame);
      return { type: 'end', id, stream: outputStream(frame), offset };
    case FrameType.window:
      expectZero(frame, 'stream', 'value');
      expectEmpty(frame);
      return { type: 'window', id, limit: offset };
    case FrameType.reply:
      expectZero(frame, 'stream', 'offset');
      return parseReply(frame);
    case FrameType.renewed:
      expectZero(frame, 'stream', 'id', 'offset');
      return parseRenewed(frame);
    case FrameType.fatal:
      expectZero(frame, 'stream', 'id', 'value', 'offset');
      return { type: 'fatal', reason: printable(payload) };
    default:
      throw new ProtocolError(`frame of unknown type ${type}`);
  }
}

function parseHello(frame: Frame): GuestMessage {
  let kernel = '';
  let agent = '';
  for (const { tag, bytes } of parseRecords(frame.payload)) {
    if (tag === Tag.kernel) kernel = printable(bytes);
    else if (tag === Tag.agent) agent = printable(bytes);
    else throw new ProtocolError(`hello with record ${tag}`);
  }
  return { type: 'hello', version: frame.value, kernel, agent };
}

function parseReply(frame: Frame): ReplyMessage {
  const reply: ReplyMessage = {
    type: 'reply',
    id: frame.id,
    errno: frame.value,
    stage: null,
    exitCode: null,
    signal: null,
    stat: null,
    path: null,
  };
  if (reply.errno > MAX_ERRNO) throw new ProtocolError(`errno ${reply.errno} out of range`);
  for (const { tag, bytes } of parseRecords(frame.payload)) {
    if (tag === Tag.stage) reply.stage = boundedUInt32(bytes, 'stage', 1, ExecStage.terminal);
    else if (tag === Tag.exitCode) reply.exitCode = boundedUInt32(bytes, 'exit code', 0, 255);
    else if (tag === Tag.signal) reply.signal = boundedUInt32(bytes, 'signal', 1, 64);
    else if (tag === Tag.stat) reply.stat = parseStat(bytes);
    else if (tag === Tag.path) reply.path = parsePath(bytes);
    else throw new ProtocolError(`reply with record ${tag}`);
  }
  return reply;
}

function parseRenewed(frame: Frame): RenewedMessage {
  const renewed: RenewedMessage = {
    type: 'renewed',
    generation: frame.generation,
    errno: frame.value,
    stage: null,
    hook: null,
    exitCode: null,
    signal: null,
  };
  if (renewed.errno > MAX_ERRNO) throw new ProtocolError(`errno ${renewed.errno} out of range`);
  for (const { tag, bytes } of parseRecords(frame.payload)) {
    if (tag === Tag.stage) renewed.stage = boundedUInt32(bytes, 'stage', 1, RenewStage.hook);
    else if (tag === Tag.hook) renewed.hook = printable(bytes);
    else if (tag === Tag.exitCode) renewed.exitCode = boundedUInt32(bytes, 'exit code', 0, 255);
    else if (tag === Tag.signal) renewed.signal = boundedUInt32(bytes, 'signal', 1, 64);
    else throw new ProtocolError(`renewal with record ${tag}`);
  }
  if ((renewed.errno === 0) !== (renewed.stage === null)) {
    throw new ProtocolError('renewal that both failed and did not');
  }
  return renewed;
}

function parseStat(bytes: Buffer): StatRecord {
  if (bytes.length !== STAT_BYTES) throw new ProtocolError(`stat of ${bytes.length} bytes`);
  return {
    dev: bytes.readBigUInt64LE(0),
    ino: bytes.readBigUInt64LE(8),
    nlink: bytes.readBigUInt64LE(16),
    rdev: bytes.readBigUInt64LE(24),
    size: bytes.readBigUInt64LE(32),
    blocks: bytes.readBigUInt64LE(40),
    atimeNs: bytes.readBigInt64LE(48),
    mtimeNs: bytes.readBigInt64LE(56),
    ctimeNs: bytes.readBigInt64LE(64),
    birthtimeNs: bytes.readBigInt64LE(72),
    mode: bytes.readUInt32LE(80),
    uid: bytes.readUInt32LE(84),
    gid: bytes.readUInt32LE(88),
    blksize: bytes.readUInt32LE(92),
  };
}

function parsePath(bytes: Buffer): Buffer {
  if (bytes.length < 1 || bytes.length > MAX_PATH_BYTES || bytes.includes(0)) {
    throw new ProtocolError(`malformed path of ${bytes.length} bytes`);
  }
  // A copy, since a view would keep the whole batch alive that it came with.
  return Buffer.from(bytes);
}

/** Splits a payload into records. */
export function parseRecords(payload: Buffer): { tag: number; bytes: Buffer }[] {
  const records: { tag: number; bytes: Buffer }[] = [];
  let at = 0;
  while (at < payload.length) {
    if (payload.length - at < RECORD_HEADER_BYTES) throw new ProtocolError('truncated record');
    const tag = payload.readUInt16LE(at);
    const length = payload.readUInt32LE(at + 4);
    at += RECORD_HEADER_BYTES;
    if (payload.readUInt16LE(at - 6) !== 0 || length > payload.length - at) {
      throw new ProtocolError(`malformed record ${tag}`);
    }
    records.push({ tag, bytes: payload.subarray(at, at + length) });
    at += length;
  }
  return records;
}

function boundedUInt32(bytes: Buffer, name: string, low: number, high: number): number {
  const value = bytes.length === 4 ? bytes.readUInt32LE(0) : -1;
  if (value < low || value > high) throw new ProtocolError(`malformed ${name}`);
  return value;
}

function expectZero(frame: Frame, ...fields: ('stream' | 'id' | 'value' | 'offset')[]): void {
  for (const field of fields) {
    if (frame[field] !== 0) {
      throw new ProtocolError(`frame of type ${frame.type} with ${field} ${frame[field]}`);
    }
  }
}

function expectEmpty(frame: Frame): void {
  if (frame.payload.length > 0) {
    throw new ProtocolError(`frame of type ${frame.type} with ${frame.payload.length} bytes`);
  }
}

function outputStream(frame: Frame): OutputStream {
  const { stream } = frame;
  if (stream !== Stream.output && stream !== Stream.error) {
    throw new ProtocolError(`frame of type ${frame.type} for stream ${stream}`);
  }
  return stream;
}

/** Text of the guest's that is safe to show: bounded, without control characters. */
function printable(bytes: Buffer): string {
  return bytes
    .subarray(0, 256)
    .toString('utf8')
    .replace(/[\u0000-\u001f\u007f-\u009f]/g, '\ufffd');
}
