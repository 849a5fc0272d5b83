// Trees between host and guest: `upload` and `download`.

import { posix } from 'node:path';

import type { GuestPath, HostPath, TransferSummary } from '../../guest-fs-options.js';
import type { Operation } from '../agent/connection.js';
import { limitError } from '../fs/limit.js';
import type { CheckedDownload } from '../fs/options.js';
import { pathText } from '../fs/paths.js';
import { brokenReply, failureOf, observeCall } from '../fs/request.js';
import {
  encodePack,
  encodeUnpack,
  ProtocolError,
  type ReplyMessage,
} from '../protocol/protocol.js';
import type { Guest } from '../vm/guest.js';
import { TreeCutOff, TreeInput } from './input.js';
import { TreeOutput, TreeRefused } from './output.js';
import { TreePacker } from './pack.js';
import { TreePlace } from './place.js';
import { TreeUnpacker } from './unpack.js';

export function uploadTree(
  guest: Guest,
  hostPath: HostPath,
  guestPath: GuestPath,
  signal: AbortSignal | undefined,
): Promise<TransferSummary> {
  const host = hostBytes(hostPath);
  const call = {
    method: 'upload',
    path: hostPath,
    destination: guestPath,
    signal,
  };
  return observeCall(guest, call, async () => {
    const operation = guest.agent.begin('other', ({ id }) => encodeUnpack(id, guestPath));
    const output = new TreeOutput(operation.input);
    const transfer = new Transfer('upload', operation, guestPath, (error) => output.stop(error));
    const value = await transfer.run(signal, () => new TreePacker(host, output).run());
    return { value, result: { ...value } };
  });
}

export function downloadTree(
  guest: Guest,
  guestPath: GuestPath,
  hostPath: HostPath,
  checked: CheckedDownload,
): Promise<TransferSummary> {
  const { signal, maxBytes, maxEntries } = checked;
  const host = hostBytes(hostPath);
  const call = {
    method: 'download',
    path: guestPath,
    destination: hostPath,
    rest: { maxBytes, maxEntries },
    signal,
  };
  return observeCall(guest, call, async () => {
    const operation = guest.agent.begin('other', ({ id, output }) =>
      encodePack(id, guestPath, { outputLimit: output.takeInitialLimit() }),
    );
    const input = new TreeInput(operation.output);
    const transfer = new Transfer('download', operation, guestPath, (error) => input.stop(error));
    const value = await transfer.run(signal, async () => {
      const place = new TreePlace(host);
      try {
        return await new TreeUnpacker(input, place, checked).run();
      } finally {
        await place.close();
      }
    });
    return { value, result: { ...value } };
  });
}

/** The directory that a path is relative to may change before the path is used. */
function hostBytes(path: HostPath): Buffer {
  const bytes = Buffer.from(path as string);
  const isRelative = bytes.length > 0 && bytes[0] !== 0x2f;
  return isRelative ? Buffer.concat([Buffer.from(`${process.cwd()}/`), bytes]) : bytes;
}

/** A transfer under way: both sides of it end before it does, whichever of them fails. */
class Transfer {
  readonly #method: 'upload' | 'download';
  readonly #operation: Operation;
  readonly #guestPath: GuestPath;
  readonly #stopHost: (error: Error) => void;
  /** Why it was ended from outside */
  #stopped: Error | undefined;

  constructor(
    method: 'upload' | 'download',
    operation: Operation,
    guestPath: GuestPath,
    stopHost: (error: Error) => void,
  ) {
    this.#method = method;
    this.#operation = operation;
    this.#guestPath = guestPath;
    this.#stopHost = stopHost;
  }

  async run(
    signal: AbortSignal | undefined,
    work: () => Promise<TransferSummary>,
  ): Promise<TransferSummary> {
    const onAbort = (): void => {
      if (signal !== undefined) this.#stop(limitError(signal));
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      return await this.#both(work);
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  #stop(error: Error): void {
    this.#stopped ??= error;
    this.#stopHost(error);
    this.#operation.cancel();
  }

  async #both(work: () => Promise<TransferSummary>): Promise<TransferSummary> {
    // A guest that fails first tells the host's side through its streams.
    const host = await work().then(
      (summary) => ({ summary, error: undefined }),
      (error: unknown) => {
        this.#operation.cancel();
        return { summary: undefined, error };
      },
    );
    const reply = await this.#operation.reply;
    if (this.#stopped !== undefined && (host.summary === undefined || reply.errno !== 0)) {
      throw this.#stopped;
    }
    const { summary, error } = host;
    const isEcho = error instanceof TreeCutOff || error instanceof TreeRefused;
    if (error instanceof ProtocolError) throw brokenReply(error.message, error);
    if (error !== undefined && !isEcho) throw error;
    if (reply.errno !== 0) throw this.#guestFailure(reply);
    if (summary === undefined) throw brokenReply('success before the tree was complete', error);
    return summary;
  }

  #guestFailure({ errno, path }: ReplyMessage): NodeJS.ErrnoException {
    const top = pathText(this.#guestPath);
    const full = path === null ? top : posix.join(top, path.toString());
    return failureOf({ method: this.#method, path: full }, errno);
  }
}
