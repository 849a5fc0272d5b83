// A VM of fake-core.ts: a guest of a few lines that speaks the agent's protocol.

import {
  encodeFrame,
  encodeRecord,
  FrameDecoder,
  FrameType,
  Tag,
} from '../../lib/internal/protocol/protocol.js';
import type { NativeError, NativeEvent, NativeParkPlace } from '../../lib/native.js';

/** The one connection of every VM. */
export const CONNECTION = 7;
const ECANCELED = 125;

/** What a guest is, besides its machine. */
export interface GuestState {
  /** Live commands, by operation. */
  commands: Set<number>;
  generation: bigint;
}

/** Frames that the guest got, in a form that tests can compare. */
export interface SeenFrame {
  readonly type: string;
  readonly id: number;
  readonly value: number;
  readonly payload: Buffer;
}

const TYPE_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(FrameType).map(([name, number]) => [number, name]),
);

/** What a VM needs of the core around it. */
export interface FakeHost {
  /** Whether guests do not say that they were renewed; tests do then. */
  readonly silentRenewal: boolean;
  emit(event: NativeEvent): void;
  nextGeneration(): bigint;
  /** The guest stands parked. */
  freeze(vm: FakeVm, at: NativeParkPlace): void;
}

export class FakeVm {
  readonly number: number;
  readonly frames: SeenFrame[] = [];
  readonly memoryBytes: number;
  readonly vcpus: number;
  entered: boolean;
  paused = false;
  guest: GuestState;
  at: NativeParkPlace = 'agent';
  /** Answers of a test's own instead of those below; `undefined` for the usual ones. */
  onFrame: ((frame: SeenFrame) => Buffer[] | undefined) | undefined;
  pending: { request: number; snapshot: number; at: NativeParkPlace } | undefined;
  readonly calls = new Map<number, Buffer>();
  #decoder = new FrameDecoder();
  readonly #host: FakeHost;

  constructor(host: FakeHost, number: number, guest: GuestState, shape: FakeShape) {
    this.#host = host;
    this.number = number;
    this.guest = guest;
    this.memoryBytes = shape.memoryBytes;
    this.vcpus = shape.vcpus;
    this.entered = shape.entered;
  }

  /** Types of the frames that the guest got. */
  get types(): string[] {
    return this.frames.map(({ type }) => type);
  }

  /** The guest says something. */
  say(...frames: Buffer[]): void {
    for (const data of frames) {
      this.#host.emit({
        type: 'connection-data',
        vm: this.number,
        connection: CONNECTION,
        data,
      });
    }
  }

  /** What the guest had read of a frame belongs to another guest now. */
  become(guest: GuestState): void {
    this.guest = guest;
    this.#decoder = new FrameDecoder();
  }

  /** Where it is frozen, a fork says that it was renewed. */
  renewed(): void {
    this.guest.generation = this.#host.nextGeneration();
    if (!this.#host.silentRenewal) this.say(renewedFrame(this.guest.generation));
  }

  receive(data: Uint8Array): void {
    for (const { type, id, value, payload } of this.#decoder.push(Uint8Array.from(data))) {
      const name = TYPE_NAMES.get(type) ?? String(type);
      const frame = { type: name, id, value, payload: Buffer.from(payload) };
      this.frames.push(frame);
      const own = this.onFrame?.(frame);
      if (own !== undefined) this.say(...own);
      else this.#answer(frame);
    }
  }

  #answer({ type, id, value }: SeenFrame): void {
    switch (type) {
      case 'configure':
      case 'ping':
        this.say(encodeFrame({ type: FrameType.reply, id }));
        return;
      case 'park':
        this.say(encodeFrame({ type: FrameType.reply, id }));
        if (value === 0) this.#host.freeze(this, 'agent');
        return;
      case 'renew':
        this.renewed();
        return;
      case 'exec':
        this.guest.commands.add(id);
        this.say(encodeFrame({ type: FrameType.started, id, value: 100 + id }));
        return;
      case 'cancel':
        this.guest.commands.delete(id);
        this.say(
          encodeFrame({
            type: FrameType.reply,
            id,
            value: ECANCELED,
            payload: [encodeRecord(Tag.signal, uint32(9))],
          }),
        );
        return;
    }
  }

  /** The program answers the first call that waits. */
  answer(value: Buffer): void {
    this.#host.emit({ type: 'done', request: this.#takeCall(), value });
  }

  fail(error: NativeError): void {
    this.#host.emit({ type: 'failed', request: this.#takeCall(), error });
  }

  #takeCall(): number {
    const [request] = this.calls.keys();
    if (request === undefined) throw new Error('Nobody called');
    this.calls.delete(request);
    return request;
  }

  /** A command ends with an exit code. */
  exit(id: number, exitCode: number): void {
    this.guest.commands.delete(id);
    const payload = [encodeRecord(Tag.exitCode, uint32(exitCode))];
    this.say(encodeFrame({ type: FrameType.reply, id, payload }));
  }
}

export interface FakeShape {
  readonly memoryBytes: number;
  readonly vcpus: number;
  readonly entered: boolean;
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

export function renewedFrame(generation: bigint, errno = 0, payload: Buffer[] = []): Buffer {
  const frame = encodeFrame({ type: FrameType.renewed, value: errno, payload });
  frame.writeBigUInt64LE(generation, 16);
  return frame;
}
