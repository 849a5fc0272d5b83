import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { type Observation, observe } from './internal/base/diagnostics.js';
import { connect } from './internal/connect/connect.js';
import type { CheckedForward } from './internal/connect/options.js';
import type { Guest } from './internal/vm/guest.js';

/**
 * A TCP port of this host whose connections go to a port of the guest; see `vm.forward()`.
 *
 * It keeps the event loop alive, as a `net.Server` does; see {@link unref}.
 */
export class PortForward implements AsyncDisposable {
  /** The address of this host. */
  readonly host: string;
  /** The port of this host. */
  readonly port: number;
  /** The port of the guest. */
  readonly guestPort: number;
  readonly #guest: Guest;
  readonly #server: Server;
  readonly #observation: Observation;
  readonly #sockets = new Set<Socket>();
  #connections = 0;
  #closed: Promise<void> | undefined;

  private constructor(guest: Guest, server: Server, observation: Observation, guestPort: number) {
    const { address, port } = server.address() as AddressInfo;
    this.host = address;
    this.port = port;
    this.guestPort = guestPort;
    this.#guest = guest;
    this.#server = server;
    this.#observation = observation;
    server.on('connection', (socket) => void this.#serve(socket));
    // Of a connection that could not be accepted: the next one may be.
    server.on('error', () => {});
  }

  /** @internal */
  static async open(
    guest: Guest,
    exited: Promise<unknown>,
    options: CheckedForward,
  ): Promise<PortForward> {
    const { guestPort, hostPort, host } = options;
    const observation = observe('forward', guest, 'forward', () => ({ guestPort, hostPort, host }));
    // Nothing is read before the guest's end is there to take it.
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true });
    try {
      const { failure } = guest.agent;
      if (failure !== undefined) throw failure;
      server.listen({ host, port: hostPort });
      await once(server, 'listening');
    } catch (error) {
      observation.fail(error);
      throw error;
    }
    const forward = new PortForward(guest, server, observation, guestPort);
    // Weakly, since the VM may outlive a forward that was closed, which knows the VM's handle.
    const ref = new WeakRef(forward);
    void exited.then(() => ref.deref()?.close());
    return forward;
  }

  async #serve(socket: Socket): Promise<void> {
    this.#connections++;
    this.#sockets.add(socket);
    const gone = new AbortController();
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#sockets.delete(socket);
      gone.abort();
    });
    try {
      const options = { allowHalfOpen: true, signal: gone.signal };
      join(socket, await connect(this.#guest, this.guestPort, options));
    } catch {
      // Why is told on the diagnostics channel; a TCP client can learn no more than that.
      socket.resetAndDestroy();
    }
  }

  /**
   * Ends the listener and the connections that go through it; resolves when they are gone. May be
   * called more than once.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    for (const socket of this.#sockets) socket.resetAndDestroy();
    await closed;
    this.#observation.succeed({ connections: this.#connections });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Keeps the event loop alive until {@link close}, as by default. */
  ref(): this {
    this.#server.ref();
    return this;
  }

  /** Undoes {@link ref}: only connections keep the event loop alive. */
  unref(): this {
    this.#server.unref();
    return this;
  }
}

/** Carries bytes, ends and breaks both ways. */
function join(socket: Socket, guest: Duplex): void {
  if (socket.destroyed) {
    guest.destroy(broken());
    return;
  }
  socket.pipe(guest);
  guest.pipe(socket);
  // An end is passed on by pipe(), which leaves out everything else.
  socket.once('close', () => {
    if (!guest.readableEnded || !guest.writableEnded) guest.destroy(broken());
  });
  guest.once('close', () => {
    if (guest.errored !== null) socket.resetAndDestroy();
  });
}

function broken(): Error {
  return new Error('The connection at the host was broken off');
}
