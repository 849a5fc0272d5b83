// Requests about files: what every method of `vm.fs` has in common.

import { guestFileError, VmError } from '../../errors.js';
import type { GuestPath } from '../../guest-fs-options.js';
import type { Operation } from '../agent/connection.js';
import { observe, observed } from '../base/diagnostics.js';
import type { ReplyMessage } from '../protocol/protocol.js';
import type { Guest } from '../vm/guest.js';
import { limitError, releaseLimit } from './limit.js';
import { checkPath, pathText } from './paths.js';

export const Errno = { EEXIST: 17, EISDIR: 21, ECANCELED: 125 } as const;

/** A call of a method, as it is told to subscribers of the diagnostics channel. */
export interface FsCall {
  readonly method: string;
  readonly path: GuestPath;
  /** Of methods that take two paths. */
  readonly destination?: GuestPath;
  /** Arguments besides the paths, without contents. */
  readonly rest?: Readonly<Record<string, unknown>>;
  readonly signal: AbortSignal | undefined;
}

/** Runs a call, unless it is aborted already, and tells how it ended. */
export function observeCall<T>(
  guest: Guest,
  { method, path, destination, rest, signal }: FsCall,
  run: () => Promise<{ value: T; result?: Readonly<Record<string, unknown>> }>,
): Promise<T> {
  const observation = observe('fs', guest, method, () => ({
    path: pathText(path),
    ...(destination !== undefined && { destination: pathText(destination) }),
    ...rest,
  }));
  return observed(observation, async () => {
    try {
      if (signal?.aborted) throw limitError(signal);
      return await run();
    } finally {
      releaseLimit(signal);
    }
  });
}

/** Waits for the reply; an abort waits until the guest has let go. */
export async function replyOf(
  operation: Operation,
  signal: AbortSignal | undefined,
): Promise<ReplyMessage> {
  const onAbort = (): void => operation.cancel();
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    const reply = await operation.reply;
    if (signal?.aborted && reply.errno !== 0) throw limitError(signal);
    return reply;
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}

/** One request that has one answer. */
export interface FsRequest extends Omit<FsCall, 'path' | 'destination'> {
  /** What node:fs names in errors. @defaultValue the method */
  readonly syscall?: string;
  readonly encode: (id: number, path: GuestPath) => Buffer;
  /** Changes an error to what node:fs has instead. */
  readonly refine?: (error: NodeJS.ErrnoException, errno: number) => void;
}

function ask(
  guest: Guest,
  call: FsCall & Pick<FsRequest, 'syscall' | 'refine'>,
  encode: (id: number) => Buffer,
): Promise<ReplyMessage> {
  return observeCall(guest, call, async () => {
    const operation = guest.agent.begin('other', ({ id }) => encode(id));
    const reply = await replyOf(operation, call.signal);
    if (reply.errno === 0) return { value: reply };
    const error = failureOf(call, reply.errno, call.syscall);
    call.refine?.(error, reply.errno);
    throw error;
  });
}

/** Makes a request; rejects with what node:fs would. */
export async function request(
  guest: Guest,
  path: GuestPath,
  call: FsRequest,
): Promise<ReplyMessage> {
  const checked = checkPath(path);
  return await ask(guest, { ...call, path: checked }, (id) => call.encode(id, checked));
}

/** The same with two paths. */
export async function requestTwoPaths(
  guest: Guest,
  path: GuestPath,
  destination: GuestPath,
  call: Omit<FsRequest, 'encode'> & {
    readonly encode: (id: number, path: GuestPath, destination: GuestPath) => Buffer;
  },
): Promise<void> {
  const from = checkPath(path);
  const to = checkPath(destination, 'destination');
  const both = { ...call, path: from, destination: to };
  await ask(guest, both, (id) => call.encode(id, from, to));
}

/** The same for what answers with a path. */
export async function requestPath(
  guest: Guest,
  method: string,
  path: GuestPath,
  encode: (id: number, path: GuestPath) => Buffer,
  options: { encoding: BufferEncoding | 'buffer'; signal: AbortSignal | undefined },
): Promise<string | Buffer> {
  const { encoding, signal } = options;
  const reply = await request(guest, path, { method, signal, encode });
  if (reply.path === null) throw brokenReply('a reply without its path');
  return textOrBytes(reply.path, encoding);
}

/** The error of a call for an errno of the guest's. */
export function failureOf(
  { method, path, destination }: Pick<FsCall, 'method' | 'path' | 'destination'>,
  errno: number,
  syscall = method,
): NodeJS.ErrnoException {
  const dest = destination === undefined ? undefined : pathText(destination);
  return guestFileError(errno, syscall, pathText(path), dest);
}

export function brokenReply(what: string, cause?: unknown): VmError {
  return new VmError({
    code: 'ERR_VM_AGENT_PROTOCOL',
    message: `The guest agent answered with ${what}`,
    ...(cause !== undefined && { cause }),
  });
}

/** Names of the guest as callers want them. */
export function textOrBytes(name: Buffer, encoding: BufferEncoding | 'buffer'): string | Buffer {
  return encoding === 'buffer' ? name : name.toString(encoding);
}
