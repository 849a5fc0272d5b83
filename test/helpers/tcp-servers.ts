import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';

import { afterEach } from 'vitest';

/** TCP servers of this machine, which is the guest where the agent runs on the host. */
export class TcpServers {
  readonly #servers: Server[] = [];

  /** Adds a server that is to be closed. */
  add(server: Server): void {
    this.#servers.push(server);
  }

  /** Makes a server, and resolves with its port. */
  async listen(
    onConnection: (socket: Socket) => void = () => {},
    host = '127.0.0.1',
  ): Promise<number> {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => {});
      onConnection(socket);
    });
    this.add(server);
    server.listen(0, host);
    await once(server, 'listening');
    return (server.address() as AddressInfo).port;
  }

  /** A port that nobody listens at. */
  async freePort(): Promise<number> {
    const port = await this.listen();
    const server = this.#servers.pop();
    server?.close();
    if (server) await once(server, 'close');
    return port;
  }

  close(): void {
    for (const server of this.#servers.splice(0)) server.close();
  }
}

/** Servers that are closed behind each test. */
export function tcpServers(): TcpServers {
  const servers = new TcpServers();
  afterEach(() => servers.close());
  return servers;
}

/** What comes until the end. A loop over the stream would close the other direction as well. */
export async function buffer(stream: Duplex): Promise<Buffer> {
  const chunks: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(stream, 'end');
  return Buffer.concat(chunks);
}

export async function text(stream: Duplex): Promise<string> {
  return (await buffer(stream)).toString();
}
