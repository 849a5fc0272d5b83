// The operations of one connection: who waits for a reply, which commands of a fork nobody has
// attached to yet, and what the host has given up but the agent may still talk about.

import { VmError } from '../../errors.js';
import type { LoopHold } from '../core.js';
import { encodeCancel, ProtocolError, type ReplyMessage } from '../protocol/protocol.js';
import { Operation, type OperationHost, type OperationKind, SharedRoom } from './operation.js';
import type { AgentState, CommandInfo } from './state.js';

/** Output of detached commands that waits for a reader, of all of them together. */
const MAX_UNREAD_BYTES = 64 * 1024 * 1024;

/** A command that runs in the guest. */
export interface RunningCommand extends CommandInfo {
  readonly pid: number;
}

export class AgentOperations {
  readonly #host: OperationHost;
  readonly #hold: LoopHold;
  readonly #live = new Map<number, Operation>();
  /** Commands that go on in a fork and that nobody has attached to: they keep nothing alive. */
  readonly #detached = new Map<number, Operation>();
  /** Those that have ended since, by the names of their commands. */
  readonly #ended = new Map<string, Operation>();
  /** Given up here, but the agent may still send frames of them until its reply. */
  readonly #abandoned = new Set<number>();
  /** Of the ping that is on its way; 0 for none */
  pingId = 0;
  #lastId = 0;

  constructor(host: OperationHost, hold: LoopHold) {
    this.#host = host;
    this.#hold = hold;
  }

  /** How many operations somebody waits for. */
  get waiting(): number {
    return this.#live.size;
  }

  get waitedFor(): Operation[] {
    return [...this.#live.values()];
  }

  /** A number that no operation has. */
  nextId(): number {
    do {
      this.#lastId = (this.#lastId + 1) >>> 0 || 1;
    } while (
      this.#live.has(this.#lastId) ||
      this.#detached.has(this.#lastId) ||
      this.#abandoned.has(this.#lastId) ||
      this.#lastId === this.pingId
    );
    return this.#lastId;
  }

  create(kind: OperationKind, encode: (operation: Operation) => Buffer): Operation {
    const operation = new Operation(this.#host, this.nextId(), kind, encode);
    this.#add(operation);
    return operation;
  }

  /** The operation that a frame is about; `undefined` for one that was given up. */
  expect(id: number, what: string): Operation | undefined {
    const operation = this.#live.get(id) ?? this.#detached.get(id);
    if (operation === undefined && !this.#abandoned.has(id)) {
      throw new ProtocolError(`${what} for operation ${id}, which is not live`);
    }
    return operation;
  }

  /** Takes out the operation that a reply belongs to; `undefined` for one that was given up. */
  finish(reply: ReplyMessage): Operation | undefined {
    if (this.#abandoned.delete(reply.id)) return undefined;
    const operation = this.expect(reply.id, 'reply');
    if (operation?.sent !== true) {
      throw new ProtocolError(`reply for operation ${reply.id}, which was not sent`);
    }
    this.#remove(operation);
    return operation;
  }

  #remove(operation: Operation): boolean {
    if (this.#detached.delete(operation.id)) {
      if (operation.command !== undefined) this.#ended.set(operation.command.id, operation);
      return true;
    }
    if (!this.#live.delete(operation.id)) return false;
    this.#hold.release();
    return true;
  }

  /** Takes an operation out of which the agent may still talk. */
  abandon(operation: Operation): void {
    if (this.#remove(operation)) this.#abandoned.add(operation.id);
  }

  /** Takes out everything. */
  takeAll(): Operation[] {
    const operations = [...this.#live.values(), ...this.#detached.values()];
    for (const operation of operations) this.#remove(operation);
    this.#abandoned.clear();
    return operations;
  }

  /** The command of that name, if it runs or nobody has seen its end yet; somebody waits for it now. */
  attach(name: string): Operation | undefined {
    for (const operation of this.#live.values()) {
      if (operation.command?.id === name) return operation;
    }
    for (const operation of this.#detached.values()) {
      if (operation.command?.id !== name) continue;
      this.#detached.delete(operation.id);
      this.#add(operation);
      return operation;
    }
    const ended = this.#ended.get(name);
    this.#ended.delete(name);
    return ended;
  }

  /** Commands of which it is not known yet that they run. */
  get starting(): Operation[] {
    return [...this.#live.values()].filter(({ kind, pid }) => kind === 'exec' && pid === undefined);
  }

  /** Commands whose request has left and whose end has not come. */
  get commands(): Operation[] {
    const all = [...this.#detached.values(), ...this.#live.values()];
    return all.filter(({ sent, command }) => sent && command !== undefined);
  }

  exportState(): Pick<AgentState, 'lastId' | 'commands' | 'others' | 'abandoned'> {
    const others = [...this.#live.values()].filter(({ sent, command }) => sent && !command);
    return {
      lastId: this.#lastId,
      commands: this.commands.flatMap(({ commandState }) => commandState ?? []),
      others: others.map(({ id }) => id),
      abandoned: [...this.#abandoned],
    };
  }

  /** Takes over what was under way in the VM that was frozen; returns the frames that end the rest. */
  restore(state: AgentState): Buffer[] {
    this.#lastId = state.lastId;
    const room = new SharedRoom(MAX_UNREAD_BYTES, unreadOverflow);
    for (const command of state.commands) {
      this.#detached.set(command.operation, Operation.restore(this.#host, command, room));
    }
    for (const id of [...state.others, ...state.abandoned]) this.#abandoned.add(id);
    return state.others.map((id) => encodeCancel(id));
  }

  #add(operation: Operation): void {
    this.#live.set(operation.id, operation);
    this.#hold.acquire();
  }
}

function unreadOverflow(): VmError {
  return new VmError({
    code: 'ERR_VM_MAX_OUTPUT',
    message:
      `Commands that nobody has attached to have written more than ${MAX_UNREAD_BYTES} bytes; ` +
      'this one was killed. Attach to commands in a fork, and read their output.',
  });
}
