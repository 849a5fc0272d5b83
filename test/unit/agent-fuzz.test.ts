import { afterAll, beforeAll, expect, test } from 'vitest';

import { canConfine, fuzzAgent, makeCage, removeCage } from '../helpers/agent-fuzz.js';
import { buildHostAgent } from '../helpers/host-agent.js';

// FORKLET_FUZZ_SECONDS=600 FORKLET_FUZZ_SEED=1000 goes on for longer, from another seed.
const seconds = Number(process.env['FORKLET_FUZZ_SECONDS'] ?? 4);
const firstSeed = Number(process.env['FORKLET_FUZZ_SEED'] ?? 1);
const FRAMES = 500;

const path = buildHostAgent();
let cage: string;

beforeAll(() => {
  cage = makeCage();
});

afterAll(() => removeCage(cage));

const name = 'random and mutated frames do the agent no harm';
test.runIf(canConfine(path))(name, { timeout: (seconds + 60) * 1000 }, async () => {
  const end = performance.now() + seconds * 1000;
  for (let seed = firstSeed; performance.now() < end; seed++) {
    const exit = await fuzzAgent(path, cage, seed, FRAMES);

    expect({ seed, ...exit }).toEqual({ seed, code: 0, signal: null, stderr: '' });
  }
});
