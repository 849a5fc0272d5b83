import { mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, beforeEach, expect } from 'vitest';

import { buildHostAgent, HostAgent } from './host-agent.js';

/**
 * One agent for a whole file, and a directory. Afterwards both are gone, and the agent has ended
 * without a complaint.
 */
export function sharedAgent(receive: (agent: HostAgent, directory: string) => void): void {
  let agent: HostAgent;
  let directory: string;

  beforeAll(() => {
    agent = new HostAgent(buildHostAgent());
    directory = realpathSync(mkdtempSync(join(tmpdir(), 'forklet-agent-')));
    receive(agent, directory);
  }, 60_000);

  afterAll(async () => {
    const exit = await agent.close();
    rmSync(directory, { recursive: true });
    expect(exit).toEqual({ code: 0, signal: null, stderr: '' });
  });
}

/** The same with an empty directory for each test, in one for all of them. */
export function sharedAgentWithDirectories(
  receive: (agent: HostAgent, directory: string, root: string) => void,
): void {
  let agent: HostAgent;
  let root: string;
  let count = 0;

  sharedAgent((...made) => {
    [agent, root] = made;
  });

  beforeEach(() => {
    const directory = join(root, String(count++));
    mkdirSync(directory);
    receive(agent, directory, root);
  });
}
