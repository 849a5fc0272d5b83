/** Frames to the guest: requests in, bytes out. See protocol.ts. */

import type { TerminalSize } from '../../exec.js';
import {
  Cancel,
  type CancelMode,
  ExecFlag,
  FrameType,
  HEADER_BYTES,
  MAX_EXEC_PAYLOAD_BYTES,
  MAX_PAYLOAD_BYTES,
  type OutputStream,
  type ParkMode,
  RECORD_HEADER_BYTES,
  Stream,
  Tag,
} from './numbers.js';

/** Puts a frame together. Fields that are left out are 0. */
export function encodeFrame(frame: {
  type: number;
  stream?: number;
  id?: number;
  value?: number;
  offset?: number;
  payload?: readonly Uint8Array[];
}): Buffer {
  const parts = frame.payload ?? [];
  const size = parts.reduce((sum, part) => sum + part.byteLength, 0);
  const limit = frame.type === FrameType.exec ? MAX_EXEC_PAYLOAD_BYTES : MAX_PAYLOAD_BYTES;
  if (size > limit) throw new RangeError(`Payload of ${size} bytes exceeds ${limit}`);
  const buffer = Buffer.allocUnsafe(HEADER_BYTES + size);
  buffer.writeUInt32LE(size, 0);
  buffer.writeUInt16LE(frame.type, 4);
  buffer.writeUInt16LE(frame.stream ?? 0, 6);
  buffer.writeUInt32LE(frame.id ?? 0, 8);
  buffer.writeUInt32LE(frame.value ?? 0, 12);
  buffer.writeBigUInt64LE(BigInt(frame.offset ?? 0), 16);
  let at = HEADER_BYTES;
  for (const part of parts) {
    buffer.set(part, at);
    at += part.byteLength;
  }
  return buffer;
}

/** Makes one record. Strings are UTF-8 and must not contain NUL, which no Linux string can. */
export function encodeRecord(tag: number, value: string | Uint8Array): Buffer {
  const bytes = typeof value === 'string' ? Buffer.from(value, 'utf8') : value;
  if (typeof value === 'string' && value.includes('\0')) {
    throw new TypeError(`String contains a null byte: ${JSON.stringify(value)}`);
  }
  const record = Buffer.allocUnsafe(RECORD_HEADER_BYTES + bytes.byteLength);
  record.writeUInt16LE(tag, 0);
  record.writeUInt16LE(0, 2);
  record.writeUInt32LE(bytes.byteLength, 4);
  record.set(bytes, RECORD_HEADER_BYTES);
  return record;
}

export function uint32(...values: number[]): Buffer {
  const bytes = Buffer.allocUnsafe(4 * values.length);
  for (const [index, value] of values.entries()) bytes.writeUInt32LE(value, 4 * index);
  return bytes;
}

export function uint64(...values: (number | bigint)[]): Buffer {
  const bytes = Buffer.allocUnsafe(8 * values.length);
  for (const [index, value] of values.entries()) bytes.writeBigUInt64LE(BigInt(value), 8 * index);
  return bytes;
}

export function encodeConfigure(id: number, options: { hostname?: string }): Buffer {
  const payload =
    options.hostname === undefined ? [] : [encodeRecord(Tag.hostname, options.hostname)];
  return encodeFrame({ type: FrameType.configure, id, payload });
}

export function encodePing(id: number): Buffer {
  return encodeFrame({ type: FrameType.ping, id });
}

/** Asks the agent to send all that it has to say, and then to stand still, or only the former. */
export function encodePark(id: number, mode: (typeof ParkMode)[keyof typeof ParkMode]): Buffer {
  return encodeFrame({ type: FrameType.park, id, value: mode });
}

/** Asks the agent to make its machine unique if that is due; a `renewed` message answers. */
export function encodeRenew(): Buffer {
  return encodeFrame({ type: FrameType.renew });
}

export interface ExecRequest {
  /** Program and arguments; the program is looked up in `env`'s PATH when it has no slash. */
  args: readonly string[];
  /** The whole environment, as `NAME=value`. */
  env?: readonly string[];
  cwd?: string;
  /** Which streams are connected; the others are /dev/null. */
  stdin?: boolean;
  stdout?: boolean;
  stderr?: boolean;
  /** Let the `started` message wait for company. A ping flushes it. */
  lazyStart?: boolean;
  /** In a cgroup of its own, so that cancelling kills whatever it has started. */
  killTree?: boolean;
  /** stdin, stdout and stderr are one terminal of that size; `stdout` is its output. */
  terminal?: TerminalSize;
  /** Initial limits of stdout and stderr, in bytes. */
  outputLimit?: number;
  errorLimit?: number;
  /** Who runs it, by name or number. */
  user?: string | number;
  group?: string | number;
  /** Supplementary groups, instead of those of the user. */
  groups?: readonly (string | number)[];
  /** Variables that come from the guest's /etc/passwd; only with `user`. */
  login?: readonly LoginVariable[];
  umask?: number;
  limits?: readonly ResourceLimit[];
}

/** A variable that a user's entry in /etc/passwd gives. */
export type LoginVariable = 'home' | 'user' | 'logname';

/** As setrlimit(2) takes it; `Infinity` is unlimited. */
export interface ResourceLimit {
  /** `RLIMIT_*` of Linux on x86-64. */
  readonly resource: number;
  readonly soft: number;
  readonly hard: number;
}

const UNLIMITED = 2n ** 64n - 1n;

function encodeLimit({ resource, soft, hard }: ResourceLimit): Buffer {
  const bytes = [soft, hard].map((value) => (value === Infinity ? UNLIMITED : value));
  return encodeRecord(Tag.limit, Buffer.concat([uint32(resource, 0), uint64(...bytes)]));
}

/** A user or group: its name under the first tag, its number under the second. */
function encodePrincipal(nameTag: number, idTag: number, value: string | number): Buffer {
  return typeof value === 'string'
    ? encodeRecord(nameTag, value)
    : encodeRecord(idTag, uint32(value));
}

function encodeIdentity({ user, group, groups, umask, limits }: ExecRequest): Buffer[] {
  const records: Buffer[] = [];
  if (user !== undefined) records.push(encodePrincipal(Tag.userName, Tag.userId, user));
  if (group !== undefined) records.push(encodePrincipal(Tag.groupName, Tag.groupId, group));
  for (const member of groups ?? []) {
    records.push(encodePrincipal(Tag.memberName, Tag.memberId, member));
  }
  if (umask !== undefined) records.push(encodeRecord(Tag.umask, uint32(umask)));
  for (const limit of limits ?? []) records.push(encodeLimit(limit));
  return records;
}

/** Throws RangeError when arguments and environment exceed {@link MAX_EXEC_PAYLOAD_BYTES}. */
export function encodeExec(id: number, request: ExecRequest): Buffer {
  const flags =
    (request.stdin ? ExecFlag.stdin : 0) |
    (request.stdout ? ExecFlag.stdout : 0) |
    (request.stderr ? ExecFlag.stderr : 0) |
    (request.lazyStart ? ExecFlag.lazyStart : 0) |
    (request.killTree ? ExecFlag.killTree : 0) |
    (request.groups !== undefined ? ExecFlag.groups : 0) |
    (request.login ?? []).reduce((sum, variable) => sum | ExecFlag[variable], 0);
  const payload = [encodeRecord(Tag.flags, uint32(flags))];
  if (request.cwd !== undefined) payload.push(encodeRecord(Tag.cwd, request.cwd));
  if (request.outputLimit) {
    payload.push(encodeRecord(Tag.outputLimit, uint64(request.outputLimit)));
  }
  if (request.errorLimit) payload.push(encodeRecord(Tag.errorLimit, uint64(request.errorLimit)));
  payload.push(...encodeIdentity(request));
  if (request.terminal !== undefined) {
    const { columns, rows } = request.terminal;
    payload.push(encodeRecord(Tag.terminal, uint32(columns, rows)));
  }
  for (const arg of request.args) payload.push(encodeRecord(Tag.arg, arg));
  for (const variable of request.env ?? []) payload.push(encodeRecord(Tag.env, variable));
  return encodeFrame({ type: FrameType.exec, id, payload });
}

export function encodeSignal(id: number, signal: number): Buffer {
  return encodeFrame({ type: FrameType.signal, id, value: signal });
}

export function encodeResize(id: number, { columns, rows }: TerminalSize): Buffer {
  return encodeFrame({ type: FrameType.resize, id, value: columns + rows * 0x1_0000 });
}

/** `mode` says how a connection is ended; other operations have one way. */
export function encodeCancel(id: number, mode: CancelMode = Cancel.close): Buffer {
  return encodeFrame({ type: FrameType.cancel, id, value: mode });
}

/** Asks for a TCP connection to a port of the guest's loopback. */
export function encodeConnect(id: number, port: number, outputLimit: number): Buffer {
  const payload = [encodeRecord(Tag.port, uint32(port))];
  if (outputLimit > 0) payload.push(encodeRecord(Tag.outputLimit, uint64(outputLimit)));
  return encodeFrame({ type: FrameType.connect, id, payload });
}

/** Asks for a reply when something listens at the port. */
export function encodeWaitPort(id: number, port: number, intervalMs: number): Buffer {
  const payload = [
    encodeRecord(Tag.port, uint32(port)),
    encodeRecord(Tag.interval, uint32(intervalMs)),
  ];
  return encodeFrame({ type: FrameType.waitPort, id, payload });
}

/** At most {@link MAX_PAYLOAD_BYTES} at a time, at least one byte, inside the granted window. */
export function encodeData(id: number, offset: number, bytes: Uint8Array): Buffer {
  return encodeFrame({ type: FrameType.data, stream: Stream.input, id, offset, payload: [bytes] });
}

export function encodeEnd(id: number, offset: number): Buffer {
  return encodeFrame({ type: FrameType.end, stream: Stream.input, id, offset });
}

/** Grants the guest bytes of an output stream up to the absolute offset `limit`. */
export function encodeWindow(id: number, stream: OutputStream, limit: number): Buffer {
  return encodeFrame({ type: FrameType.window, stream, id, offset: limit });
}
