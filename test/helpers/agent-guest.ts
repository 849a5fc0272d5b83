// The real guest agent as an ordinary process of this machine, on a socket instead of vsock: the
// logic of commands, files and streams is tested against it in milliseconds.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Duplex } from 'node:stream';
import { fileURLToPath } from 'node:url';

import type { ConnectOptions, ForwardOptions, WaitForPortOptions } from '../../lib/connections.js';
import type { ExecCommand, ExecOptions, ExecProcess } from '../../lib/exec.js';
import { GuestFs } from '../../lib/guest-fs.js';
import {
  AgentConnection,
  type AgentConnectionOptions,
} from '../../lib/internal/agent/connection.js';
import type { AgentState } from '../../lib/internal/agent/state.js';
import type { Environment } from '../../lib/internal/base/validate.js';
import { connect, waitForPort } from '../../lib/internal/connect/connect.js';
import { checkForward } from '../../lib/internal/connect/options.js';
import { attachCommand, startCommand } from '../../lib/internal/exec/start.js';
import { ParkMode } from '../../lib/internal/protocol/protocol.js';
import { decodeState, encodeState } from '../../lib/internal/snapshot/session-state.js';
import type { Guest } from '../../lib/internal/vm/guest.js';
import { PortForward } from '../../lib/port-forward.js';

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
  agent: AgentConnection | (() => AgentConnection),
  env: Environment,
  owner: object,
): Guest {
  let commands = 0;
  return {
    id,
    parentId: null,
    env,
    owner,
    get agent() {
      return typeof agent === 'function' ? agent() : agent;
    },
    nextCommandId: () => `${id}/${++commands}`,
  };
}

/** A "VM" whose guest is a process of the host. */
export class AgentGuest {
  readonly hold = new CountingHold();
  readonly fs: GuestFs;
  /** Bytes of each send to the agent. */
  readonly sends: number[] = [];
  /** A directory of the host, for files of tests. */
  readonly directory: string;
  readonly #child: ChildProcess;
  readonly #guest: Guest;
  readonly #socket: Duplex;
  readonly #options: AgentConnectionOptions;
  #agent: AgentConnection;

  private constructor(
    child: ChildProcess,
    directory: string,
    env: Environment,
    options: AgentConnectionOptions,
  ) {
    this.#child = child;
    this.directory = directory;
    this.#socket = child.stdio[3] as Duplex;
    this.#options = options;
    this.#agent = this.#connect();
    this.#socket.on('data', (data: Buffer) => this.#agent.receive(data));
    this.#socket.on('close', () => this.#agent.closed());
    this.#socket.on('error', () => {});
    this.#guest = testGuest('vm-test', () => this.#agent, env, this);
    this.fs = new GuestFs(this.#guest);
  }

  get agent(): AgentConnection {
    return this.#agent;
  }

  #connect(state?: AgentState): AgentConnection {
    const agent: AgentConnection = new AgentConnection(
      {
        send: (data) => {
          this.sends.push(data.length);
          this.#socket.write(data, () => agent.sent(data.length));
        },
        consume: () => {},
        disconnect: () => this.#socket.destroy(),
      },
      this.hold,
      { ...this.#options, ...(state !== undefined && { state }) },
    );
    return agent;
  }

  /**
   * Goes on as a fork does, with another connection that knows what this one leaves behind, as it
   * is saved. What was pending here fails with `reason`.
   */
  async takeOver(reason: Error): Promise<void> {
    const before = this.#agent;
    let state: AgentState | undefined;
    const park = before.park(ParkMode.flush, () => false);
    park.onReply = () => {
      state = { ...before.exportState(), generation: '0' };
      const vm = { env: {}, hostname: '', agent: state };
      const saved = encodeState({ id: 'snap', parentId: null, label: null, vm });
      this.#agent = this.#connect(decodeState(saved).vm.agent);
    };
    await park.reply;
    before.fail(() => reason);
  }

  connect(port: number, options?: ConnectOptions): Promise<Duplex> {
    return connect(this.#guest, port, options);
  }

  waitForPort(port: number, options?: WaitForPortOptions): Promise<void> {
    return waitForPort(this.#guest, port, options);
  }

  /** Closes with the promise `exited`. */
  forward(options: ForwardOptions, exited: Promise<unknown>): Promise<PortForward> {
    return PortForward.open(this.#guest, exited, checkForward(options));
  }

  attach(id: string): ExecProcess<string> {
    return attachCommand(this.#guest, id);
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
