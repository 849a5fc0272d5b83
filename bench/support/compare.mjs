// Takes samples of something of ours and of the reference in turns, so that whatever the host is
// busy with meets both.

import { Bench } from 'tinybench';

import { summarize } from './samples.mjs';

/**
 * Runs a task so many times and returns how long each took, in microseconds. What its hooks do,
 * such as closing a VM, is outside of the timed span.
 *
 * @param {number} count
 * @param {{ run: () => Promise<unknown>, before?: () => unknown, beforeEach?: () => unknown,
 *   afterEach?: () => unknown, after?: () => unknown }} task
 */
export async function sample(count, { run, before, beforeEach, afterEach, after }) {
  const bench = new Bench({
    iterations: count,
    time: 0,
    warmup: false,
    timestampProvider: 'hrtimeNow',
    retainSamples: true,
    throws: true,
  });
  const hook = (call) => call && (async () => void (await call()));
  const hooks = {
    beforeAll: hook(before),
    beforeEach: hook(beforeEach),
    afterEach: hook(afterEach),
    afterAll: hook(after),
  };
  const given = Object.entries(hooks).filter(([, call]) => call !== undefined);
  bench.add('task', run, { async: true, ...Object.fromEntries(given) });
  const [task] = await bench.run();
  return task.result.latency.samples.map((ms) => ms * 1000);
}

/**
 * @param {object} bench - see run.mjs
 * @param {object} task - of ours, as for `sample`
 * @param {object} [how]
 * @param {number} [how.perRound] - samples of ours in a round
 * @param {object} [how.reference] - options of the reference
 * @param {'restored' | 'stored'} [how.span] - which of its times counts
 */
export async function compare(bench, task, how = {}) {
  const { perRound = 20, reference = {}, span = 'restored' } = how;
  const few = (count) => (bench.quick ? Math.min(count, 3) : count);
  const samples = [];
  const references = [];
  // What is done for the first time is done slowly: code is compiled, memory allocated.
  await sample(few(perRound), task);
  for (let round = 0; round < bench.rounds; round++) {
    const times = await bench.fixture.reference({
      ...reference,
      count: few(reference.count ?? 20),
    });
    references.push(...times[span]);
    samples.push(...(await sample(few(perRound), task)));
  }
  return {
    unit: 'us',
    summary: summarize(samples),
    reference: { span, options: reference, summary: summarize(references) },
    samples,
  };
}
