// One core per environment (main thread or worker): the addon's message pump and who listens.

import { fromNative, VmError } from '../errors.js';
import { loadAddon, type NativeCore, type NativeError, type NativeEvent } from '../native.js';

/** Where the events of one VM go. Calls come in the order of the events. */
export interface VmListener {
  onConsole(data: Uint8Array): void;
  onExit(event: Extract<NativeEvent, { type: 'exit' }>): void;
  onConnectionOpened(connection: number, port: number): void;
  onConnectionData(connection: number, data: Uint8Array): void;
  onConnectionSent(connection: number, bytes: number): void;
  onConnectionClosed(connection: number): void;
}

/** Keeps Node's event loop alive between `acquire` and `release`; calls nest. */
export interface LoopHold {
  acquire(): void;
  release(): void;
}

/** A request was given up by whoever made it. */
export class RequestCancelled extends Error {
  override readonly name = 'RequestCancelled';
}

/** How the core says so. */
const CANCELLED = 'ERR_VM_CANCELLED';

interface Answer {
  readonly value?: unknown;
  readonly error?: NativeError;
}

type Receiver = (answer: Answer) => void;

/** The addon's core with promises for its requests and a listener for each VM. */
export class Core implements LoopHold {
  static #instance: Core | undefined;

  /** The environment's core, created at first use. Throws what {@link loadAddon} throws. */
  static get(): Core {
    Core.#instance ??= new Core();
    return Core.#instance;
  }

  readonly native: NativeCore;
  readonly #requests = new Map<number, Receiver>();
  readonly #listeners = new Map<number, VmListener>();
  #lastRequest = 0;
  #lastVm = 0;
  #lastSnapshot = 0;
  #holds = 0;

  private constructor() {
    this.native = loadAddon().createCore((events) => this.#dispatch(events));
    this.native.unref();
  }

  /** A number that names a VM in every later call. */
  newVm(): number {
    return ++this.#lastVm;
  }

  /** Registers a VM's listener, in the tick in which the VM is first asked for. */
  listen(vm: number, listener: VmListener): void {
    this.#listeners.set(vm, listener);
  }

  remove(vm: number): void {
    this.#listeners.delete(vm);
  }

  /** A number that names a snapshot in every later call. */
  newSnapshot(): number {
    return ++this.#lastSnapshot;
  }

  /**
   * Posts one request and waits for its answer; holds the event loop meanwhile.
   *
   * `receive` gets the answer where it stands among the events of its VM: those behind it have not
   * been delivered yet.
   */
  request<T, R = T>(
    post: (request: number) => void,
    receive: (value: T) => R = (value) => value as unknown as R,
  ): Promise<R> {
    const request = ++this.#lastRequest;
    post(request);
    return this.#answer(request, receive);
  }

  /** The same for a request that may be answered at once: `post` then returns the answer. */
  requestUnlessNow<T>(post: (request: number) => T | undefined): T | Promise<T> {
    const request = ++this.#lastRequest;
    return post(request) ?? this.#answer<T, T>(request, (value) => value);
  }

  async #answer<T, R>(request: number, receive: (value: T) => R): Promise<R> {
    const answered = new Promise<{ readonly value: R } | { readonly error: NativeError }>(
      (resolve, reject) => {
        this.#requests.set(request, ({ value, error }) => {
          this.#requests.delete(request);
          try {
            resolve(error === undefined ? { value: receive(value as T) } : { error });
          } catch (thrown) {
            reject(thrown);
          }
        });
      },
    );
    this.acquire();
    try {
      const outcome = await answered;
      if ('value' in outcome) return outcome.value;
      // Made here rather than where the event came in: the caller is on this stack.
      const { error } = outcome;
      if (error.code === CANCELLED) throw new RequestCancelled(error.message);
      throw fromNative(error);
    } finally {
      this.release();
    }
  }

  acquire(): void {
    if (this.#holds++ === 0) this.native.ref();
  }

  release(): void {
    if (--this.#holds === 0) this.native.unref();
  }

  #dispatch(events: readonly NativeEvent[]): void {
    for (const event of events) this.#dispatchOne(event);
  }

  #dispatchOne(event: NativeEvent): void {
    switch (event.type) {
      case 'done':
        this.#requests.get(event.request)?.({ value: event.value });
        return;
      case 'failed':
        this.#requests.get(event.request)?.({ error: event.error });
        return;
      default: {
        const listener = this.#listeners.get(event.vm);
        // Events of a VM that is being closed can still be on their way.
        if (listener !== undefined) deliver(listener, event);
      }
    }
  }
}

type VmEvent = Exclude<NativeEvent, { type: 'done' | 'failed' }>;

function deliver(listener: VmListener, event: VmEvent): void {
  switch (event.type) {
    case 'console':
      listener.onConsole(event.data);
      return;
    case 'exit':
      listener.onExit(event);
      return;
    case 'connection-opened':
      listener.onConnectionOpened(event.connection, event.port);
      return;
    case 'connection-data':
      listener.onConnectionData(event.connection, event.data);
      return;
    case 'connection-sent':
      listener.onConnectionSent(event.connection, event.bytes);
      return;
    case 'connection-closed':
      listener.onConnectionClosed(event.connection);
      return;
    default:
      throw new VmError({
        code: 'ERR_VM_INTERNAL',
        message: `The addon sent an event of an unknown type: ${(event as NativeEvent).type}`,
      });
  }
}
