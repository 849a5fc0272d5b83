// The machine of an agent that runs on the host: guest/agent/host_machine.c, with a FIFO for its
// doorbell. The test is the host of it.

import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

import type { GuestMessage, RenewedMessage } from '../../lib/internal/protocol/protocol.js';
import { HostAgent } from './host-agent.js';

/** Fields of `struct fk_mailbox`. */
export interface Mailbox {
  parkAgain?: boolean;
  generation?: bigint;
  entropy?: Uint8Array;
  realtimeNs?: bigint;
  tsc?: bigint;
  tscKhz?: number;
  hostname?: string;
  id?: Uint8Array;
}

const MAILBOX_BYTES = 4096;

export function encodeMailbox(mailbox: Mailbox): Buffer {
  const bytes = Buffer.alloc(MAILBOX_BYTES);
  bytes.writeUInt32LE(1, 0);
  bytes.writeUInt32LE(mailbox.parkAgain ? 1 : 0, 4);
  bytes.writeBigUInt64LE(mailbox.generation ?? 0n, 8);
  bytes.set(mailbox.entropy ?? [], 16);
  bytes.writeBigInt64LE(mailbox.realtimeNs ?? 0n, 80);
  bytes.writeBigUInt64LE(mailbox.tsc ?? 0n, 88);
  bytes.writeUInt32LE(mailbox.tscKhz ?? 0, 96);
  bytes.writeUInt32LE(Buffer.byteLength(mailbox.hostname ?? ''), 100);
  bytes.write(mailbox.hostname ?? '', 104);
  bytes.set(mailbox.id ?? [], 168);
  return bytes;
}

export function isRenewed(message: GuestMessage): message is RenewedMessage {
  return message.type === 'renewed';
}

export class HostMachine {
  readonly directory = mkdtempSync(join(tmpdir(), 'forklet-machine-'));
  readonly agent: HostAgent;
  readonly #doorbell: number;

  constructor(path: string) {
    this.write('mailbox', encodeMailbox({}));
    mkdirSync(this.path('run'));
    execFileSync('mkfifo', [this.path('doorbell')]);
    // Both ways, so that opening it does not wait for the agent.
    this.#doorbell = openSync(this.path('doorbell'), 'r+');
    this.agent = new HostAgent(path, [], { FK_TEST_MACHINE: this.directory });
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  write(name: string, contents: string | Uint8Array, mode = 0o644): void {
    mkdirSync(dirname(this.path(name)), { recursive: true });
    // In place: the agent has the mailbox mapped.
    writeFileSync(this.path(name), contents, { flag: existsSync(this.path(name)) ? 'r+' : 'w' });
    execFileSync('chmod', [mode.toString(8), this.path(name)]);
  }

  read(name: string): string {
    return readFileSync(this.path(name), 'utf8');
  }

  /** What the agent did to the machine so far. */
  get log(): string[] {
    return existsSync(this.path('log')) ? this.read('log').split('\n').slice(0, -1) : [];
  }

  /** Resolves when the agent has parked `times` times in all. */
  async parked(times = 1): Promise<void> {
    while (this.log.filter((line) => line === 'park').length < times) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** Lets the agent go, as the machine that the mailbox tells of. */
  letGo(mailbox?: Mailbox): void {
    if (mailbox !== undefined) this.write('mailbox', encodeMailbox(mailbox));
    writeSync(this.#doorbell, '.');
  }

  /** A hook of the image: a shell script. */
  addHook(name: string, script: string, mode = 0o755): void {
    this.write(`etc/forklet/fork.d/${name}`, `#!/bin/sh\n${script}\n`, mode);
  }

  renewed(): Promise<RenewedMessage> {
    return this.agent.next(isRenewed);
  }

  async close(): Promise<unknown> {
    const exit = await this.agent.close();
    closeSync(this.#doorbell);
    rmSync(this.directory, { recursive: true });
    return exit;
  }
}
