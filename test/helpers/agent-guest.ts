// The real guest agent as an ordinary process of this machine, on a socket instead of vsock: the
// logic of commands, files and streams is tested against it in milliseconds.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Duplex } from 'node:stream';
import { fileURLToPath } from 'node:url';

import type { ExecCommand, ExecOptions, ExecProcess } from '../../lib/exec.js';
import { GuestFs } from '../../lib/guest-fs.js';
import {
  AgentConnection,
  type AgentConnectionOptions,
} from '../../lib/internal/agent-connection.js';
import { startCommand } from '../../lib/internal/exec-start.js';
import type { Guest } from '../../lib/internal/guest.js';
import type { Environment } from '../../lib/internal/validate.js';

const buildScript = fileURLToPath(new URL('../../guest/agent/build', import.meta.url));

let built: string | undefined;

/** Builds the agent for the host, at most once, and returns its path. */
function agentProgram(): string {
  built ??= execFileSync(buildScript, ['--host-test'], { encoding: 'utf8' }).trim();
  return built;
}

/** What an operation of the library holds while it is under way. */
export class CountingHold {
  held = 0;

  acquire(): void {
    this.held++;
  }

  release(): void {
    this.held--;
  }
}

/** What commands and files know of a VM, for tests. */
export function testGuest(
  id: string,
  agent: AgentConnection,
  env: Environment,
  owner: object,
): Guest {
  let commands = 0;
  return { id, parentId: null, agent, env, owner, nextCommandId: () => `${id}/${++commands}` };
}

/** A "VM" whose guest is a process of the host. */
export class AgentGuest {
  readonly agent: AgentConnection;
  readonly hold = new CountingHold();
  readonly fs: GuestFs;
  /** Bytes of each send to the agent. */
  readonly sends: number[] = [];
  /** A directory of the host, for files of tests. */
  readonly directory: string;
  readonly #child: ChildProcess;
  readonly #guest: Guest;

  private constructor(
    child: ChildProcess,
    directory: string,
    env: Environment,
    options: AgentConnectionOptions,
  ) {
    this.#child = child;
    this.directory = directory;
    const socket = child.stdio[3] as Duplex;
    this.agent = new AgentConnection(
      {
        send: (data) => {
          this.sends.push(data.length);
          socket.write(data, () => this.agent.sent(data.length));
        },
        consume: () => {},
        disconnect: () => socket.destroy(),
      },
      this.hold,
      options,
    );
    socket.on('data', (data: Buffer) => this.agent.receive(data));
    socket.on('close', () => this.agent.closed());
    socket.on('error', () => {});
    this.#guest = testGuest('vm-test', this.agent, env, this);
    this.fs = new GuestFs(this.#guest);
  }

  static async start(
    options: AgentConnectionOptions & { env?: Environment } = {},
  ): Promise<AgentGuest> {
    const directory = await mkdtemp(path.join(tmpdir(), 'forklet-agent-'));
    const child = spawn(agentProgram(), { stdio: ['ignore', 'ignore', 'inherit', 'pipe'] });
    const env = { PATH: '/usr/bin:/bin', ...options.env };
    const guest = new AgentGuest(child, directory, env, options);
    await guest.agent.hello;
    return guest;
  }

  exec(command: ExecCommand, options: ExecOptions & { encoding: 'buffer' }): ExecProcess<Buffer>;
  exec(
    command: ExecCommand,
    options?: ExecOptions & { encoding?: BufferEncoding },
  ): ExecProcess<string>;
  exec(command: ExecCommand, options?: ExecOptions): ExecProcess<string> | ExecProcess<Buffer> {
    return startCommand(this.#guest, command, options);
  }

  /** A path inside the directory of this test. */
  path(name: string): string {
    return path.join(this.directory, name);
  }

  /** Stops and continues the agent, as a guest that hangs. */
  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const exited = once(this.#child, 'exit');
      this.#child.kill('SIGKILL');
      await exited;
    }
    await rm(this.directory, { recursive: true, force: true });
  }
}
